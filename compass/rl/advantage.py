"""Group advantages (METHOD 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass.types import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """How rewards of a group become advantages."""

    normalize: Literal["std", "none"] = "std"
    """`std`: (r - mean) / std as GRPO (arXiv 2402.03300); `none`: r - mean as Dr. GRPO
    (arXiv 2503.20783)."""
    sigma_min: float = 0.1
    """Floor of the std, so that small differences are not blown up to full scale. Our choice."""


def group_advantages(groups: Sequence[RolloutGroup], cfg: AdvantageConfig) -> list[list[float]]:
    """One advantage per rollout of each group; see `normalized_advantages`.

    A flat group gets exact zeros, not float residue divided by a small std.
    """
    return [
        [0.0] * len(group.rollouts)
        if group.is_flat
        else normalized_advantages(
            [r.score.verdict if r.score.valid else None for r in group.rollouts],
            divide_by_std=cfg.normalize == "std",
            sigma_min=cfg.sigma_min,
        )
        for group in groups
    ]


def normalized_advantages(
    rewards: Sequence[float | None], *, divide_by_std: bool, sigma_min: float
) -> list[float]:
    """Centred, optionally scaled rewards: A_i = (r_i - mean r) / max(std r, sigma_min).

    `None` marks a rollout whose verifier failed: it gets 0 and takes no part in mean and std
    (our reading of the indicator in arXiv 2512.00499, eq. 11). The std is that of the population.
    """
    valid = [r for r in rewards if r is not None]
    if not valid:
        return [0.0] * len(rewards)
    mean = math.fsum(valid) / len(valid)
    scale = 1.0
    if divide_by_std:
        variance = math.fsum((r - mean) ** 2 for r in valid) / len(valid)
        scale = max(math.sqrt(variance), sigma_min)
    return [0.0 if r is None else (r - mean) / scale for r in rewards]
