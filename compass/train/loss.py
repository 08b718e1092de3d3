"""Losses, as pure functions of one microbatch (METHOD 2).

Each returns this microbatch's *share* of the loss, a local sum over global counts, so that shares
add up over microbatches and ranks to the same number however the batch was split.

The surrogate of a token with ratio s and advantage A is min(s A, clip(s, 1-eps_low, 1+eps_high) A);
a loss is its negative, aggregated as each method says.

Shape legend: R loss tokens of a microbatch, B its sequences, V vocabulary,
U units (a unit is the set of tokens that share one ratio: a rollout, or an entropy group of it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compass.means import Means


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What a loss may look at. Built by `compass.train.trainer`."""

    logprobs_R: Tensor
    """Of the policy being updated; carries the gradient."""
    old_logprobs_R: Tensor
    """Of the same weights as the rollout, computed by the trainer."""
    old_entropy_R: Tensor
    """Full-vocabulary entropy in nats under the old policy."""
    advantages_R: Tensor
    sequence_ids_R: Tensor
    """In [0, B), non-decreasing."""
    num_sequences: int
    num_rollouts: int
    """Global count of rollouts in the minibatch: the denominator of means over rollouts."""
    num_tokens: int
    """Global count of loss tokens in the minibatch: the denominator of means over tokens."""
    vocab_size: int


Loss = Callable[[LossInputs], tuple[Tensor, Means]]


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """GRPO (arXiv 2402.03300)."""

    clip_low: float = 0.2
    """Largest step of the token ratio below 1."""
    clip_high: float = 0.2
    """Largest step of the token ratio above 1."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(grpo_loss, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class GspoConfig:
    """GSPO (arXiv 2507.18071)."""

    clip_low: float = 3e-4
    """Largest step of the sequence ratio below 1."""
    clip_high: float = 4e-4
    """Largest step of the sequence ratio above 1."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(gspo_loss, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class EspoConfig:
    """ESPO (arXiv 2512.00499)."""

    alpha: float = 0.02
    """Clip radius per unit of normalised entropy (eq. 8); best of 0.01/0.02/0.05/0.10 there."""
    rho: float = 0.2
    """Share of a rollout's tokens in the high-entropy group."""
    eps_min: float = 1e-5
    """Floor of the clip radius. Our reading: the paper has none."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(espo_loss, alpha=self.alpha, rho=self.rho, eps_min=self.eps_min)


def sft_loss(x: LossInputs) -> tuple[Tensor, Means]:
    """Cross-entropy in nats, a mean over all loss tokens of the batch."""
    nll_R = -x.logprobs_R
    means = Means()
    means.add_values("sft/nll", nll_R)
    means.add_values("actor/entropy", x.old_entropy_R)
    return nll_R.sum() / x.num_tokens, means


def grpo_loss(x: LossInputs, *, clip_low: float, clip_high: float) -> tuple[Tensor, Means]:
    """Token ratios; mean over the tokens of a rollout, then over rollouts (arXiv 2402.03300)."""
    ratio_R = (x.logprobs_R - x.old_logprobs_R).exp()
    weight_R = _rollout_mean_weights(x)
    return _clipped_surrogate(x, ratio_R, clip_low, clip_high, weight_R)


def gspo_loss(x: LossInputs, *, clip_low: float, clip_high: float) -> tuple[Tensor, Means]:
    """One ratio per rollout, s_i = exp(mean log r_t), in the token form sg[s_i] pi / sg[pi]
    (arXiv 2507.18071, GSPO-token); aggregated as GRPO."""
    ratio_R = _unit_ratio(x, x.sequence_ids_R, x.num_sequences)
    weight_R = _rollout_mean_weights(x)
    return _clipped_surrogate(x, ratio_R, clip_low, clip_high, weight_R)


def espo_loss(
    x: LossInputs,
    *,
    alpha: float,
    rho: float,
    eps_min: float,
) -> tuple[Tensor, Means]:
    """One ratio and one adaptive clip radius per entropy group (arXiv 2512.00499, eq. 5-11)."""
    group_R = entropy_groups(x.old_entropy_R, x.sequence_ids_R, rho=rho)
    loss, eps_R, ratio_R, means = espo_surrogate(
        x, group_R, num_groups=2, alpha=alpha, eps_min=eps_min
    )
    clipped_R = (ratio_R.detach() - 1).abs() > eps_R
    for group, name in ((0, "high"), (1, "low")):
        members_R = group_R == group
        means.add_values(f"espo/eps_{name}", eps_R[members_R])
        means.add_values(f"espo/ratio_{name}", ratio_R[members_R])
        means.add_values(f"espo/clipfrac_{name}", clipped_R[members_R])
    return loss, means


def espo_surrogate(
    x: LossInputs, group_R: Tensor, *, num_groups: int, alpha: float, eps_min: float
) -> tuple[Tensor, Tensor, Tensor, Means]:
    """ESPO for any partition of each rollout's tokens (arXiv 2512.00499, eq. 8-10).

    With one group it is GSPO with an adaptive radius; with one token per group its ratios are
    GRPO's.

    Args:
        group_R: group of each token within its rollout, in [0, num_groups).

    Returns:
        the loss share, eps_R and ratio_R (each token's unit's radius and ratio), metrics.
    """
    unit_R = x.sequence_ids_R * num_groups + group_R
    num_units = x.num_sequences * num_groups
    ratio_R = _unit_ratio(x, unit_R, num_units)
    entropy_U, count_U = _segment_mean(x.old_entropy_R, unit_R, num_units)
    eps_R = (alpha / math.log(x.vocab_size) * entropy_U).clamp_min(eps_min)[unit_R]
    groups_B = (count_U > 0).view(x.num_sequences, num_groups).sum(dim=1)
    weight_R = 1.0 / (count_U[unit_R] * groups_B[x.sequence_ids_R] * x.num_rollouts)
    loss, means = _clipped_surrogate(x, ratio_R, eps_R, eps_R, weight_R)
    return loss, eps_R, ratio_R, means


def entropy_groups(entropy_R: Tensor, sequence_ids_R: Tensor, *, rho: float) -> Tensor:
    """Split each rollout's tokens by entropy: 0 for its max(1, ceil(rho n)) most uncertain tokens,
    1 for the rest; ties go to the earlier token. [R] int64."""
    if not len(entropy_R):
        return torch.zeros_like(sequence_ids_R)
    by_entropy_R = entropy_R.argsort(descending=True, stable=True)
    order_R = by_entropy_R[sequence_ids_R[by_entropy_R].argsort(stable=True)]
    count_B = sequence_ids_R.bincount()
    start_B = count_B.cumsum(0) - count_B
    # `order_R` lists sequence 0's tokens, then sequence 1's, ...; sequence_ids_R is sorted too.
    rank_R = torch.empty_like(sequence_ids_R)
    rank_R[order_R] = torch.arange(len(order_R), device=rank_R.device) - start_B[sequence_ids_R]
    # The product can land a rounding error above a whole number; that is not one token more.
    num_high_B = (rho * count_B.double() - 1e-9).ceil().clamp_min(1)
    return (rank_R >= num_high_B[sequence_ids_R]).long()


def _segment_mean(values_R: Tensor, unit_R: Tensor, num_units: int) -> tuple[Tensor, Tensor]:
    """Mean of `values_R` in each unit (0 where empty), and the units' sizes as floats."""
    zeros_U = values_R.new_zeros(num_units)
    count_U = zeros_U.index_add(0, unit_R, torch.ones_like(values_R))
    return zeros_U.index_add(0, unit_R, values_R) / count_U.clamp_min(1), count_U


def _unit_ratio(x: LossInputs, unit_R: Tensor, num_units: int) -> Tensor:
    """sg[s] pi / sg[pi] with s the unit's geometric-mean ratio: its value is s, its gradient goes
    through each token (arXiv 2507.18071, GSPO-token; arXiv 2512.00499, eq. 9-10)."""
    log_ratio_R = (x.logprobs_R - x.old_logprobs_R).detach()
    mean_U, _ = _segment_mean(log_ratio_R, unit_R, num_units)
    return mean_U.exp()[unit_R] * (x.logprobs_R - x.logprobs_R.detach()).exp()


def _rollout_mean_weights(x: LossInputs) -> Tensor:
    """Weights that turn a sum over tokens into a mean over rollouts of means over tokens."""
    count_B = x.sequence_ids_R.bincount(minlength=x.num_sequences)
    return 1.0 / (count_B[x.sequence_ids_R] * x.num_rollouts)


def _clipped_surrogate(
    x: LossInputs,
    ratio_R: Tensor,
    eps_low: Tensor | float,
    eps_high: Tensor | float,
    weight_R: Tensor,
) -> tuple[Tensor, Means]:
    clipped_R = ratio_R.clamp(1 - eps_low, 1 + eps_high)  # type: ignore[arg-type]
    surrogate_R = torch.minimum(ratio_R * x.advantages_R, clipped_R * x.advantages_R)
    loss = -(surrogate_R * weight_R).sum()
    log_ratio_R = (x.logprobs_R - x.old_logprobs_R).detach()
    means = Means()
    means.add("actor/pg_loss", loss, weight_R.sum())
    # A token is clipped when its gradient is cut off, not merely when its ratio is outside.
    means.add_values("actor/pg_clipfrac", clipped_R * x.advantages_R < ratio_R * x.advantages_R)
    means.add_values("actor/ppo_kl", -log_ratio_R)
    means.add_values("actor/entropy", x.old_entropy_R)
    return loss, means
