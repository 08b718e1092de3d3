"""Rollout correction: what to do where generator and trainer disagree (docs/espo.md).

w = exp(old_logprobs - rollout_logprobs) says how much likelier the trainer finds a sampled token
than the generator did. The correction is a weight on the token's loss, without a gradient;
denominators stay what they were, so dropped tokens weaken a step instead of strengthening the
others.

Shape legend: R loss tokens, B sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compass.errors import UserError
from compass.means import Means
from compass.train.loss import segment_mean

CorrectionMode = Literal["off", "tis", "mis_token", "mis_sequence"]


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """How the update allows for a generator that is not exactly the trainer."""

    mode: Literal["auto", CorrectionMode] = "auto"
    """`auto`: `tis` when the generator computes with quantised weights or a quantised KV cache,
    `off` when with the trainer's own; `tis` (truncated importance sampling): multiply a token's
    loss by min(w, cap); `mis_token` (masking): drop tokens with w outside [1/cap, cap];
    `mis_sequence`: drop rollouts whose geometric mean of w is outside. What is not dropped keeps
    its weight of 1."""
    cap: float = 2.0
    """Largest w that counts in full, above 1."""

    def __post_init__(self) -> None:
        if not self.cap > 1:
            raise UserError(f"correction.cap={self.cap} must be above 1")

    def resolve(self, *, quantised: bool) -> Correction:
        """What to do with rollouts of a generator that is `quantised`, or exact."""
        automatic: CorrectionMode = "tis" if quantised else "off"
        return Correction(mode=automatic if self.mode == "auto" else self.mode, cap=self.cap)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A `CorrectionConfig` without `auto`."""

    mode: CorrectionMode
    cap: float


def correction_weights(
    old_logprobs_R: Tensor,
    rollout_logprobs_R: Tensor,
    sequence_ids_R: Tensor,
    num_sequences: int,
    *,
    mode: CorrectionMode,
    cap: float,
) -> tuple[Tensor, Means]:
    """weight_R of each token's loss, without a gradient, and metrics.

    `off` gives ones and no metrics; the others give `correction/mean_weight` and the share of
    tokens that were clipped (`tis`) or dropped (`mis_*`).
    """
    means = Means()
    log_w_R = (old_logprobs_R - rollout_logprobs_R).detach()
    if mode == "off":
        return torch.ones_like(log_w_R), means
    log_cap = math.log(cap)
    if mode == "tis":
        weight_R = log_w_R.clamp_max(log_cap).exp()
        means.add_values("correction/clipped_frac", log_w_R > log_cap)
    else:
        if mode == "mis_sequence":
            mean_B, _ = segment_mean(log_w_R, sequence_ids_R, num_sequences)
            log_w_R = mean_B[sequence_ids_R]
        kept_R = log_w_R.abs() <= log_cap
        weight_R = kept_R.to(log_w_R.dtype)
        means.add_values("correction/dropped_frac", ~kept_R)
    means.add_values("correction/mean_weight", weight_R)
    return weight_R, means
