"""From groups to packed microbatches, the same number on every rank.

Minibatches are cut by the numbers of the step's prompts, wherever their homes are, and so are the
same at any number of ranks.
A rollout whose advantage is exactly zero adds nothing to a policy-gradient loss: it is left out of
the microbatches and, by default, stays in the denominators. Those that train are balanced over
ranks and microbatches by cost; what has to change ranks for that travels once.

Shape legend: N tokens of one rollout, T packed tokens, R loss tokens, L MoE layers,
K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch

from compass.distributed import Topology
from compass.errors import UserError
from compass.models.flops import forward_flops
from compass.models.specs import ModelSpec
from compass.rl.placement.balance import MicrobatchPlan, plan_microbatches
from compass.rl.placement.exchange import Parcel, exchange, num_exchanged_bytes
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.types import Microbatch, Rollout, RolloutGroup, RolloutTokens

StayWith = Literal["writers", "homes"]
"""Who trains a rollout: the rank that wrote it, so that few bytes change ranks, or its group's
home. Where it depends on time who writes what, only with the second an update does not."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a rollout batch is cut for the update."""

    num_minibatches: int = 1
    """Optimizer steps per rollout batch, at most one for each prompt."""
    max_tokens_per_microbatch: int = 8192
    """Fed tokens of one forward/backward pass on a rank; a longer rollout goes alone."""
    denominator: Literal["all", "trained"] = "all"
    """What means over a minibatch divide by: all its rollouts, or only those with an advantage.
    Our choice: `all`, so that a flat group weakens a step instead of leaving it at full length."""

    def __post_init__(self) -> None:
        for name in ("num_minibatches", "max_tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise UserError(f"pack.{name}={getattr(self, name)} must be at least 1")

    def check(self, num_prompts_per_step: int) -> None:
        """Raises UserError when a minibatch would have no prompt."""
        if self.num_minibatches > num_prompts_per_step:
            raise UserError(
                f"pack.num_minibatches={self.num_minibatches} is more than "
                f"num_prompts_per_step={num_prompts_per_step}, and a minibatch needs a prompt; "
                "lower the one or raise the other"
            )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rollouts are trained."""

    mask_truncated: bool = False
    """None that ended at the length limit: DAPO's overlong filter (arXiv 2503.14476, section 3.4).
    Such a rollout is still part of its group's statistics, and of the denominators where those
    count all."""
    everything: bool = False
    """The loss has a term for rollouts without an advantage, too."""

    def masks(self, rollout: Rollout) -> bool:
        """True of a rollout that is not trained whatever its advantage."""
        return self.mask_truncated and rollout.finish_reason == "length"

    def trains(self, rollout: Rollout, advantage: float, flat_sign: int) -> bool:
        """False when a rollout could add nothing to the gradient, or must not."""
        if self.masks(rollout):
            return False
        has_advantage = advantage != 0.0 or (flat_sign != 0 and rollout.score.valid)
        return self.everything or has_advantage


SURROGATE_ONLY = Selection()
"""Whatever has an advantage."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A rollout's tokens and what they are to be trained with. Built by `pack`."""

    tokens: RolloutTokens
    advantage: float
    flat_sign: int = 0
    """+1 or -1: RL-ZVP gives its tokens their advantages, by its group's verdict."""
    weight: float = 1.0
    """Its group's."""

    @property
    def num_fed_tokens(self) -> int:
        """The last token is only ever a target."""
        return len(self.tokens.token_ids) - 1


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """What one optimizer step trains on. Built by `pack`."""

    microbatches: tuple[Microbatch, ...]
    """As many on every rank; none when no rank has anything to train on."""
    members: tuple[tuple[Entry, ...], ...]
    """Whose sequences each microbatch holds, in order; none for a rank that has run out."""
    num_rollouts: float
    """Global denominator of means over rollouts; those of a group that grew may count in part."""
    num_tokens: float
    """Global denominator of means over loss tokens, counted likewise."""
    num_trained_rollouts: int
    """Global count of rollouts in the microbatches."""
    num_masked_rollouts: int = 0
    """Global count of those that were left out for their length, whatever their advantages."""


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A rollout batch, ready to train on. Built by `pack`."""

    minibatches: tuple[Minibatch, ...]
    exchanged_bytes: int
    """What changed ranks, over all ranks."""
    imbalance: float
    """Cost of the dearest rank in each microbatch over that of the mean rank, summed over
    microbatches; 1 is even, and so is nothing at all."""


class Entry(NamedTuple):
    """A rollout to train, as every rank knows it. Entries sort by their place in the batch, which
    is the same however many ranks the groups are dealt to."""

    number: int
    """Of its prompt."""
    sample: int
    home: int
    holder: int
    slot: int
    num_tokens: int
    num_loss_tokens: int
    advantage: float
    flat_sign: int
    weight: float


class Part(NamedTuple):
    """A part of the rollout batch: a group, or the groups of a minibatch. Built by `make_part` and
    `cut`."""

    number: int
    """Of its first prompt."""
    entries: list[Entry]
    num_rollouts: float
    """Counted by the denominators."""
    num_tokens: float
    num_masked: int


def pack(
    groups: Sequence[RolloutGroup],
    advantages: Sequence[Sequence[float]],
    written: RankRollouts,
    spec: ModelSpec,
    topology: Topology,
    cfg: PackConfig,
    *,
    numbers: Sequence[int],
    replay: bool,
    flat_signs: Sequence[int] | None = None,
    stay_with: StayWith = "writers",
    selection: Selection = SURROGATE_ONLY,
) -> PackedBatch:
    """Cut the groups of all ranks into `num_minibatches` minibatches of packed microbatches.
    Collective.

    Args:
        groups: those at home on this rank.
        advantages: one number per rollout of each group.
        written: the tokens of what this rank wrote, whosever groups it is part of.
        numbers: of each group's prompt among all prompts of the step, whatever their homes.
        replay: put the rollouts' recorded routes into the microbatches.
        flat_signs: one per group, +1 or -1 for those that RL-ZVP is to train; None leaves it no
            group.
        stay_with: who trains a rollout, unless a move evens out the ranks.
        selection: which rollouts are trained at all.
    """
    signs = flat_signs or [0] * len(groups)
    mine = [
        make_part(number, group, of_group, sign, topology.rank, cfg, selection)
        for number, group, of_group, sign in zip(numbers, groups, advantages, signs, strict=True)
    ]
    parts = cut(topology.all_gather_object(mine), cfg.num_minibatches)
    plans = [_plan(part, spec, topology.world_size, cfg, stay_with) for part in parts]
    parcels = [parcel for pair in zip(parts, plans, strict=True) for parcel in _parcels(*pair)]
    tokens = exchange(parcels, written, topology, spec, with_routes=replay)
    minibatches, first = [], 0
    for part, plan in zip(parts, plans, strict=True):
        trained = {
            i: Trained(
                tokens=tokens[first + i],
                advantage=e.advantage,
                flat_sign=e.flat_sign,
                weight=e.weight,
            )
            for i, e in enumerate(part.entries)
            if first + i in tokens
        }
        first += len(part.entries)
        of_rank = plan.by_rank[topology.rank]
        minibatches.append(
            Minibatch(
                microbatches=_microbatches(of_rank, trained, spec, replay=replay),
                members=tuple(tuple(part.entries[i] for i in of_one) for of_one in of_rank),
                num_rollouts=part.num_rollouts,
                num_tokens=part.num_tokens,
                num_trained_rollouts=len(part.entries),
                num_masked_rollouts=part.num_masked,
            )
        )
    mean_cost = sum(plan.mean_cost for plan in plans)
    return PackedBatch(
        minibatches=tuple(minibatches),
        exchanged_bytes=num_exchanged_bytes(parcels, spec, with_routes=replay),
        imbalance=sum(plan.slowest_cost for plan in plans) / mean_cost if mean_cost else 1.0,
    )


def make_part(
    number: int,
    group: RolloutGroup,
    advantages: Sequence[float],
    sign: int,
    home: int,
    cfg: PackConfig,
    selection: Selection = SURROGATE_ONLY,
) -> Part:
    """A group's part of the batch."""
    entries: list[Entry] = []
    counted: list[Rollout] = []
    for rollout, advantage in zip(group.rollouts, advantages, strict=True):
        trained = selection.trains(rollout, advantage, sign)
        if trained or cfg.denominator == "all":
            counted.append(rollout)
        if trained:
            entries.append(
                Entry(
                    number=number,
                    sample=rollout.sample,
                    home=home,
                    holder=rollout.holder,
                    slot=rollout.slot,
                    num_tokens=rollout.num_tokens,
                    num_loss_tokens=rollout.num_completion_tokens,
                    advantage=advantage,
                    flat_sign=sign,
                    weight=group.weight,
                )
            )
    num_tokens = sum(r.num_completion_tokens for r in counted)
    num_masked = sum(map(selection.masks, group.rollouts))
    return Part(number, entries, group.count * len(counted), group.count * num_tokens, num_masked)


def cut(by_rank: Iterable[Iterable[Part]], num_minibatches: int) -> list[Part]:
    """The minibatches, from every rank's groups: consecutive prompts, by number, in parts whose
    sizes differ by at most one. None is empty unless there are fewer groups than that."""
    groups = sorted(
        (group for of_rank in by_rank for group in of_rank), key=lambda group: group.number
    )
    ends = [len(groups) * part // num_minibatches for part in range(num_minibatches + 1)]
    return [_together(groups[start:end]) for start, end in pairwise(ends)]


def _together(members: Sequence[Part]) -> Part:
    """One part of several, in order."""
    return Part(
        members[0].number if members else 0,
        [entry for part in members for entry in part.entries],
        sum(part.num_rollouts for part in members),
        sum(part.num_tokens for part in members),
        sum(part.num_masked for part in members),
    )


def _plan(
    part: Part, spec: ModelSpec, num_ranks: int, cfg: PackConfig, stay_with: StayWith
) -> MicrobatchPlan:
    fed = [entry.num_tokens - 1 for entry in part.entries]
    return plan_microbatches(
        fed,
        [
            forward_flops(spec, length, num_scored=entry.num_loss_tokens)
            for length, entry in zip(fed, part.entries, strict=True)
        ],
        [entry.holder if stay_with == "writers" else entry.home for entry in part.entries],
        num_ranks=num_ranks,
        capacity=cfg.max_tokens_per_microbatch,
    )


def _parcels(part: Part, plan: MicrobatchPlan) -> list[Parcel]:
    receivers = plan.ranks
    return [
        Parcel(
            sender=entry.holder,
            slot=entry.slot,
            receiver=receivers[i],
            num_tokens=entry.num_tokens,
        )
        for i, entry in enumerate(part.entries)
    ]


def _microbatches(
    plan: Sequence[Sequence[int]],
    trained: Mapping[int, Trained],
    spec: ModelSpec,
    *,
    replay: bool,
) -> tuple[Microbatch, ...]:
    return tuple(
        pack_microbatch([trained[i] for i in members], spec, replay=replay)
        if members
        else filler_microbatch(spec, replay=replay)
        for members in plan
    )


def pack_microbatch(items: Sequence[Trained], spec: ModelSpec, *, replay: bool) -> Microbatch:
    """Pack rollouts end to end; a rollout of N tokens is fed as its first N-1."""
    tokens = [item.tokens for item in items]
    lengths = [item.num_fed_tokens for item in items]
    masks = [t.loss_mask[1:] for t in tokens]
    num_scored = torch.tensor([int(mask.sum()) for mask in masks])
    advantage_B = torch.tensor([item.advantage for item in items], dtype=torch.float32)
    return Microbatch(
        token_ids=torch.cat([t.token_ids[:-1] for t in tokens]),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        sequence_lengths=tuple(lengths),
        rows=torch.cat(masks).nonzero().squeeze(1),
        targets=torch.cat([t.token_ids[1:][m] for t, m in zip(tokens, masks, strict=True)]),
        sequence_ids=torch.arange(len(items)).repeat_interleave(num_scored),
        advantages=advantage_B.repeat_interleave(num_scored),
        flat_signs=torch.tensor([item.flat_sign for item in items]),
        weights=torch.tensor([item.weight for item in items], dtype=torch.float32),
        rollout_logprobs=torch.cat(
            [t.rollout_logprobs[1:][m] for t, m in zip(tokens, masks, strict=True)]
        ),
        routed_experts=torch.cat([t.routed_experts for t in tokens]) if replay else None,
    )


def filler_microbatch(spec: ModelSpec, *, replay: bool) -> Microbatch:
    """A microbatch for a rank that has run out: one token, no loss.

    Its forward and backward pass join every collective and add a zero gradient. The token routes
    live, and counts nowhere.
    """
    nothing = torch.zeros(0)
    routes_TLK = torch.full((1, spec.num_moe_layers, spec.top_k), -1)
    return Microbatch(
        token_ids=torch.zeros(1, dtype=torch.int64),
        positions=torch.zeros(1, dtype=torch.int64),
        sequence_lengths=(1,),
        rows=nothing.long(),
        targets=nothing.long(),
        sequence_ids=nothing.long(),
        advantages=nothing,
        flat_signs=torch.zeros(1, dtype=torch.int64),
        weights=torch.ones(1),
        rollout_logprobs=nothing,
        routed_experts=routes_TLK if replay else None,
    )
