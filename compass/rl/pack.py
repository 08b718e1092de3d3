"""From groups to packed microbatches, the same number on every rank.

A rollout whose advantage is exactly zero adds nothing to a policy-gradient loss: it is left out of
the microbatches and, by default, stays in the denominators.

Shape legend: N tokens of one rollout, T packed tokens, R loss tokens, L MoE layers,
K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compass.bins import first_fit_decreasing
from compass.distributed import Topology
from compass.errors import UserError
from compass.models.router import check_routes
from compass.models.specs import ModelSpec
from compass.types import Microbatch, Rollout, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a rollout batch is cut for the update."""

    num_minibatches: int = 1
    """Optimizer steps per rollout batch; divides the number of prompts per step and rank."""
    max_tokens_per_microbatch: int = 8192
    """Fed tokens of one forward/backward pass on a rank; a longer rollout goes alone."""
    denominator: Literal["all", "trained"] = "all"
    """What means over a minibatch divide by: all its rollouts, or only those with an advantage.
    Our choice: `all`, so that a flat group weakens a step instead of leaving it at full length."""

    def __post_init__(self) -> None:
        for name in ("num_minibatches", "max_tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise UserError(f"pack.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A rollout and what it is to be trained with. Built by `pack`."""

    rollout: Rollout
    advantage: float
    flat_sign: int = 0
    """+1 or -1: RL-ZVP gives its tokens their advantages, by its group's verdict."""

    @property
    def trains(self) -> bool:
        """False when it could add nothing to the gradient."""
        return self.advantage != 0.0 or (self.flat_sign != 0 and self.rollout.score.valid)

    @property
    def num_fed_tokens(self) -> int:
        """The last token is only ever a target."""
        return len(self.rollout.token_ids) - 1


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """What one optimizer step trains on. Built by `pack`."""

    microbatches: tuple[Microbatch, ...]
    """As many on every rank; none when no rank has anything to train on."""
    num_rollouts: int
    """Global denominator of means over rollouts."""
    num_tokens: int
    """Global denominator of means over loss tokens."""
    num_trained_rollouts: int
    """Global count of rollouts in the microbatches."""


def pack(
    groups: Sequence[RolloutGroup],
    advantages: Sequence[Sequence[float]],
    spec: ModelSpec,
    topology: Topology,
    cfg: PackConfig,
    *,
    replay: bool,
    flat_signs: Sequence[int] | None = None,
) -> tuple[Minibatch, ...]:
    """Cut this rank's groups into `num_minibatches` minibatches of packed microbatches. Collective.

    Args:
        advantages: one number per rollout of each group.
        replay: put the rollouts' recorded routes into the microbatches.
        flat_signs: one per group, +1 or -1 for those that RL-ZVP is to train; None leaves it no
            group.

    Raises:
        ValueError: recorded routes that no router of `spec` could have made.
    """
    minibatches = []
    signs = flat_signs or [0] * len(groups)
    for part in _deal(list(zip(groups, advantages, signs, strict=True)), cfg.num_minibatches):
        pairs = [
            Trained(rollout=rollout, advantage=advantage, flat_sign=sign)
            for group, of_group, sign in part
            for rollout, advantage in zip(group.rollouts, of_group, strict=True)
        ]
        trained = [item for item in pairs if item.trains]
        counted = pairs if cfg.denominator == "all" else trained
        sizes = [t.num_fed_tokens for t in trained]
        bins = first_fit_decreasing(range(len(sizes)), sizes, cfg.max_tokens_per_microbatch)
        counts = torch.tensor(
            [len(counted), sum(t.rollout.num_completion_tokens for t in counted), len(trained)]
        )
        num_rollouts, num_tokens, num_trained = topology.all_reduce_sum(counts).tolist()
        num_microbatches = topology.max_int(len(bins))
        microbatches = [
            pack_microbatch([trained[i] for i in members], spec, replay=replay) for members in bins
        ]
        filler = [filler_microbatch(spec, replay=replay)] * (num_microbatches - len(bins))
        minibatches.append(
            Minibatch(
                microbatches=(*microbatches, *filler),
                num_rollouts=num_rollouts,
                num_tokens=num_tokens,
                num_trained_rollouts=num_trained,
            )
        )
    return tuple(minibatches)


def pack_microbatch(items: Sequence[Trained], spec: ModelSpec, *, replay: bool) -> Microbatch:
    """Pack rollouts end to end; a rollout of N tokens is fed as its first N-1.

    Raises:
        ValueError: see `pack`.
    """
    rollouts = [item.rollout for item in items]
    lengths = [item.num_fed_tokens for item in items]
    masks = [r.loss_mask[1:] for r in rollouts]
    num_scored = torch.tensor([int(mask.sum()) for mask in masks])
    advantage_B = torch.tensor([item.advantage for item in items], dtype=torch.float32)
    return Microbatch(
        token_ids=torch.cat([r.token_ids[:-1] for r in rollouts]),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        sequence_lengths=tuple(lengths),
        rows=torch.cat(masks).nonzero().squeeze(1),
        targets=torch.cat([r.token_ids[1:][m] for r, m in zip(rollouts, masks, strict=True)]),
        sequence_ids=torch.arange(len(items)).repeat_interleave(num_scored),
        advantages=advantage_B.repeat_interleave(num_scored),
        flat_signs=torch.tensor([item.flat_sign for item in items]),
        rollout_logprobs=torch.cat(
            [r.rollout_logprobs[1:][m] for r, m in zip(rollouts, masks, strict=True)]
        ),
        routed_experts=_routes(rollouts, spec) if replay else None,
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
        rollout_logprobs=nothing,
        routed_experts=routes_TLK if replay else None,
    )


def _routes(rollouts: Sequence[Rollout], spec: ModelSpec) -> Tensor:
    # int32 on the way: torch concatenates and compares few operations of uint16.
    routes_TLK = torch.cat([r.routed_experts.to(torch.int32) for r in rollouts]).long()
    check_routes(routes_TLK, spec.num_experts)
    return routes_TLK


def _deal(items: list, num_parts: int) -> Iterator[list]:
    """Contiguous parts whose sizes differ by at most one.

    Prompts are dealt to ranks like cards, so part m of every rank together holds the same prompts
    at any world size that divides evenly.
    """
    for part in range(num_parts):
        start = part * len(items) // num_parts
        yield items[start : (part + 1) * len(items) // num_parts]
