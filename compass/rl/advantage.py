"""Group advantages: GRPO (arXiv 2402.03300) and Dr. GRPO (arXiv 2503.20783)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from compass.distributed import Topology
from compass.means import Means
from compass.own import OwnValue
from compass.rl.zero_variance.outcome import tie_sign
from compass.types import FLAT_TOLERANCE, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """How rewards of a group become advantages."""

    normalize: Literal["std", "none"] = "std"
    """`std`: (r - mean) / std as GRPO (arXiv 2402.03300); `none`: r - mean as Dr. GRPO
    (arXiv 2503.20783)."""
    sigma_min: float = 0.1
    """Floor of the std, so that small differences are not blown up to full scale. Our choice."""
    fn: str | None = None
    """`path/file.py:function` of your own instead, called as (group, rewards) for each group whose
    rewards differ (docs/extending.md); flat groups are the zero-variance stages' own."""
    own: dict[str, OwnValue] = field(default_factory=dict)
    """Values for its keyword parameters, checked by their annotations."""


Rewards = Sequence[float | None]
"""Of the rollouts of one group, in order; None where the verifier failed."""


def unshaped_rewards(group: RolloutGroup) -> Rewards:
    """The rewards as they were given."""
    return [r.score.reward if r.score.valid else None for r in group.rollouts]


def is_flat(rewards: Rewards) -> bool:
    """True when no two valid rewards differ: the group has no advantage."""
    valid = [r for r in rewards if r is not None]
    return not valid or max(valid) - min(valid) <= FLAT_TOLERANCE


def group_advantages(
    groups: Sequence[RolloutGroup], rewards: Sequence[Rewards], cfg: AdvantageConfig
) -> list[list[float]]:
    """One advantage per rollout of each group; see `normalized_advantages`.

    A group of flat rewards gets exact zeros, not float residue divided by a small std. Where all
    answers are wrong and rewards differ by shaping alone, what is above 0 becomes 0: a wrong
    answer can be punished for loops and overlength, but none is reinforced for being less bad, or
    the policy would learn to give up early. Our choice.
    """
    return [
        _advantages(group, of_group, cfg) for group, of_group in zip(groups, rewards, strict=True)
    ]


def _advantages(group: RolloutGroup, rewards: Rewards, cfg: AdvantageConfig) -> list[float]:
    if is_flat(rewards):
        return [0.0] * len(rewards)
    advantages = normalized_advantages(
        rewards, divide_by_std=cfg.normalize == "std", sigma_min=cfg.sigma_min
    )
    if group.is_flat and tie_sign(group.valid_verdicts) < 0:
        return [min(advantage, 0.0) for advantage in advantages]
    return advantages


def shaping_metrics(
    groups: Sequence[RolloutGroup], advantages: Sequence[Sequence[float]], topology: Topology
) -> dict[str, float]:
    """How much of the learning shaping decides by itself, over all ranks. Collective.

    `zv/shaping_share` is the share of sum |A| that lies in groups whose rewards agreed, and
    `zv/right_punished_frac` the share of right answers with an advantage below 0. RL-ZVP's
    advantages are not among them.
    """
    means = Means()
    for group, of_group in zip(groups, advantages, strict=True):
        total = math.fsum(map(abs, of_group))
        shaped = total if group.is_flat else 0.0
        means.add("zv/shaping_share", shaped, total)
        for rollout, advantage in zip(group.rollouts, of_group, strict=True):
            if rollout.score.valid and rollout.score.verdict >= 1:
                means.add("zv/right_punished_frac", float(advantage < 0))
    return means.reduce(topology)


def normalized_advantages(
    rewards: Rewards, *, divide_by_std: bool, sigma_min: float
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
