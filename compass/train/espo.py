"""ESPO: one ratio and one adaptive clip radius per entropy group (arXiv 2512.00499, eq. 5-11).

Groups are numbered from the most uncertain tokens down. With one group ESPO is GSPO with an
adaptive radius; with one token per group its ratios are GRPO's.

Shape legend: R loss tokens of a microbatch, B its sequences, C cuts between entropy groups,
U units (the tokens of one sequence in one entropy group).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from compass.distributed import Topology
from compass.errors import UserError
from compass.means import Means
from compass.train.loss import (
    Loss,
    LossInputs,
    clipped_surrogate,
    segment_mean,
    token_gradient,
    token_ratio,
    unit_ratio,
)

EspoRatio = Literal["group", "printed"]

_INFINITY_BITS = 0x7F800000
"""float32 infinity as an integer: above every finite entropy."""


@dataclass(frozen=True, kw_only=True)
class EspoConfig:
    """ESPO (arXiv 2512.00499)."""

    alpha: float = 0.02
    """Clip radius per unit of normalised entropy (eq. 8); best of 0.01/0.02/0.05/0.10 there."""
    num_groups: int = 2
    """Entropy groups of a rollout. Two are split by `rho`; any other number are of equal size."""
    rho: float = 0.2
    """Share of tokens in the high-entropy group of two; best of 0.1/0.2/0.4 in the paper."""
    ratio: EspoRatio = "group"
    """`group`: sg[s] pi / sg[pi], the token form of GSPO, whose value is the group's ratio;
    `printed`: eq. 9 as printed, sg[s] pi / sg[pi_old], whose value moves with each token too. Our
    reading is `group`: the radius of eq. 8 is made for the ratio of a group."""
    scope: Literal["response", "batch"] = "response"
    """What the entropy quantiles are taken over: each rollout, or all trained tokens of the
    minibatch. Our reading: the paper splits the tokens of one response."""
    eps_min: float = 1e-5
    """Floor of the clip radius. Our reading: the paper has none."""
    reference_tokens: int = 1000
    """Size of a group from which its radius is eq. 8's; a smaller group, of n tokens, has
    sqrt(reference_tokens / n) times that. The ratio of a group averages n log-ratios, so its spread
    falls as 1 / sqrt(n), and `alpha` was tuned on groups of about 1,000. Ours; with 0 the radius
    of any group is eq. 8's as printed."""

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise UserError(f"espo.num_groups={self.num_groups} must be at least 1")
        if not 0 < self.rho <= 1:
            raise UserError(f"espo.rho={self.rho} must be above 0 and at most 1")
        if self.reference_tokens < 0:
            raise UserError(
                f"espo.reference_tokens={self.reference_tokens} must be at least 0, which leaves "
                "radii as they are printed"
            )

    def bind(self, cuts: tuple[float, ...] | None = None) -> Loss:
        """The loss with these values; `cuts` are the minibatch's with `scope = "batch"`
        (`entropy_cuts`), and None otherwise."""
        assert (cuts is None) == (self.scope == "response")
        return partial(
            espo_loss,
            alpha=self.alpha,
            shares=group_shares(self.num_groups, self.rho),
            cuts=cuts,
            ratio=self.ratio,
            eps_min=self.eps_min,
            reference_tokens=self.reference_tokens,
        )


def espo_loss(
    x: LossInputs,
    *,
    alpha: float,
    shares: tuple[float, ...],
    cuts: tuple[float, ...] | None,
    ratio: EspoRatio,
    eps_min: float,
    reference_tokens: int,
) -> tuple[Tensor, Means]:
    """The mean over rollouts of the mean over non-empty groups of the mean over tokens (eq. 5).

    Args:
        shares: see `group_shares`.
        cuts: entropies between groups, the same for every rollout; None: by rank in each rollout.
    """
    if cuts is None:
        group_R = entropy_groups(x.old_entropy_R, x.sequence_ids_R, shares=shares)
    else:
        group_R = groups_by_cuts(x.old_entropy_R, cuts)
    num_groups = len(shares) + 1
    loss, eps_R, ratio_R, means = espo_surrogate(
        x,
        group_R,
        num_groups=num_groups,
        alpha=alpha,
        ratio=ratio,
        eps_min=eps_min,
        reference_tokens=reference_tokens,
    )
    outside_R = (ratio_R.detach() - 1).abs() > eps_R
    count_U, square_U, top_U = _moves(x, x.sequence_ids_R * num_groups + group_R, num_groups)
    names = ("high", "low") if num_groups == 2 else tuple(map(str, range(num_groups)))
    for group, name in enumerate(names):
        members_R = group_R == group
        means.add_values(f"espo/eps_{name}", eps_R, members_R)
        means.add_values(f"espo/ratio_{name}", ratio_R, members_R)
        means.add_values(f"espo/clipfrac_{name}", outside_R, members_R)
        of_group_U = slice(group, None, num_groups)
        means.add(f"espo/tokens_{name}", count_U[of_group_U].sum(), (count_U[of_group_U] > 0).sum())
        means.add(f"espo/top_token_{name}", top_U[of_group_U].sum(), square_U[of_group_U].sum())
    return loss, means


def _moves(x: LossInputs, unit_R: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of each unit, the sum of their squared log-ratios, and the largest of these."""
    square_R = (x.logprobs_R - x.old_logprobs_R).detach().square()
    mean_U, count_U = segment_mean(square_R, unit_R, x.num_sequences * num_groups)
    top_U = torch.zeros_like(mean_U).scatter_reduce(0, unit_R, square_R, "amax")
    return count_U, mean_U * count_U, top_U


def espo_surrogate(
    x: LossInputs,
    group_R: Tensor,
    *,
    num_groups: int,
    alpha: float,
    ratio: EspoRatio,
    eps_min: float,
    reference_tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Means]:
    """ESPO for any partition of each rollout's tokens (eq. 8-10).

    Args:
        group_R: group of each token within its rollout, in [0, num_groups).

    Returns:
        the loss share, eps_R and ratio_R (each token's radius and ratio), metrics.
    """
    unit_R = x.sequence_ids_R * num_groups + group_R
    num_units = x.num_sequences * num_groups
    per_token_R = token_gradient(x) if ratio == "group" else token_ratio(x)
    ratio_R = unit_ratio(x, unit_R, num_units) * per_token_R
    entropy_U, count_U = segment_mean(x.old_entropy_R, unit_R, num_units)
    eps_U = alpha / math.log(x.vocab_size) * entropy_U * size_factor(count_U, reference_tokens)
    eps_R = eps_U.clamp_min(eps_min)[unit_R]
    groups_B = (count_U > 0).view(x.num_sequences, num_groups).sum(dim=1)
    weight_R = 1.0 / (count_U[unit_R] * groups_B[x.sequence_ids_R] * x.num_rollouts)
    loss, means = clipped_surrogate(x, ratio_R, eps_R, eps_R, weight_R)
    return loss, eps_R, ratio_R, means


def size_factor(count_U: Tensor, reference_tokens: int) -> Tensor:
    """By how much the radius of a unit of `count_U` tokens exceeds eq. 8's: max(1, sqrt(reference /
    count)). Ours: it keeps a band as wide against the spread of the unit's ratio as that of
    `reference_tokens` tokens is."""
    return (reference_tokens / count_U.clamp_min(1)).sqrt().clamp_min(1)


def group_shares(num_groups: int, rho: float) -> tuple[float, ...]:
    """Where groups end: the share of tokens in the first group, in the first two, and so on; the
    last group is the rest. Two groups are split at `rho`, any other number into equal parts."""
    if num_groups == 2:
        return (rho,)
    return tuple(group / num_groups for group in range(1, num_groups))


def entropy_groups(entropy_R: Tensor, sequence_ids_R: Tensor, *, shares: Sequence[float]) -> Tensor:
    """Split each rollout's tokens by entropy rank: the first group has its max(1, ceil(share n))
    most uncertain tokens, and so on; ties go to the earlier token. [R] int64.

    A rollout with fewer tokens than groups leaves some groups empty.
    """
    if not len(entropy_R):
        return torch.zeros_like(sequence_ids_R)
    by_entropy_R = entropy_R.argsort(descending=True, stable=True)
    order_R = by_entropy_R[sequence_ids_R[by_entropy_R].argsort(stable=True)]
    # `order_R` lists sequence 0's tokens, then sequence 1's, ...; sequence_ids_R is sorted too, so
    # that a search finds where each token's sequence starts and ends. (To count by sequence, the
    # host would ask the device how many there are.)
    start_R, end_R = (
        torch.searchsorted(sequence_ids_R, sequence_ids_R, right=right) for right in (False, True)
    )
    rank_R = torch.empty_like(sequence_ids_R)
    rank_R[order_R] = torch.arange(len(order_R), device=rank_R.device) - start_R
    group_R = torch.zeros_like(sequence_ids_R)
    for share in shares:
        group_R += rank_R >= _num_tokens(share, end_R - start_R)
    return group_R


def groups_by_cuts(entropy_R: Tensor, cuts: Sequence[float]) -> Tensor:
    """Group of each token: the number of cuts that lie above its entropy. [R] int64."""
    group_R = torch.zeros(len(entropy_R), dtype=torch.int64, device=entropy_R.device)
    for cut in cuts:
        group_R += entropy_R.clamp_min(0) < cut
    return group_R


def entropy_cuts(
    entropies: Sequence[Tensor], shares: Sequence[float], topology: Topology
) -> tuple[float, ...]:
    """The max(1, ceil(share n))-th largest entropy over all ranks, for each share. Collective.

    Exact, and so the same however tokens are dealt to ranks and microbatches: it bisects the bit
    patterns of float32, which order non-negative numbers, and only counts cross ranks.

    Args:
        entropies: this rank's, float32; rounding below 0 counts as 0.
    """
    if not shares:
        return ()
    entropy_R = torch.cat([torch.zeros(0, device=topology.device), *entropies])
    # Adding 0 turns -0, whose bits are those of a negative integer, into 0.
    bits_R = (entropy_R.clamp_min(0) + 0.0).view(torch.int32)
    num_tokens = topology.all_reduce_sum(torch.tensor(len(bits_R))).cpu()
    wanted_C = torch.stack([_num_tokens(share, num_tokens) for share in shares])
    low_C = torch.zeros(len(shares), dtype=torch.int64)
    high_C = torch.full_like(low_C, _INFINITY_BITS)
    for _ in range(_INFINITY_BITS.bit_length()):
        middle_C = (low_C + high_C) // 2
        count_C = torch.stack([(bits_R >= middle).sum() for middle in middle_C.tolist()])
        enough_C = topology.all_reduce_sum(count_C).cpu() >= wanted_C
        low_C = torch.where(enough_C, middle_C, low_C)
        high_C = torch.where(enough_C, high_C, middle_C)
    return tuple(low_C.to(torch.int32).view(torch.float32).tolist())


def _num_tokens(share: float, count: Tensor) -> Tensor:
    # The product can land a rounding error above a whole number; that is not one token more.
    return (share * count.double() - 1e-9).ceil().clamp_min(1)
