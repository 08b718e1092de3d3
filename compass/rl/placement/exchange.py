"""Per-token data from the rank that wrote a rollout to the rank that trains it, once.

Shape legend: N tokens of one rollout, L MoE layers, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from compass.distributed import Topology
from compass.models.specs import ModelSpec
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.types import RolloutTokens


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A rollout's way from one rank to another, known to all ranks. Built by `compass.rl.pack`."""

    sender: int
    slot: int
    """Of the sender's rollouts."""
    receiver: int
    num_tokens: int
    """N."""


def exchange(
    parcels: Sequence[Parcel],
    written: RankRollouts,
    topology: Topology,
    spec: ModelSpec,
    *,
    with_routes: bool,
) -> dict[int, RolloutTokens]:
    """The tokens of every parcel for this rank, by the parcel's index; those it wrote itself are
    handed over as they are. One collective, of exactly the bytes that change ranks.

    Args:
        parcels: the same on every rank, in the same order.
        with_routes: send recorded routes; without them `routed_experts` of what comes has no layer.
    """
    layout = _Layout(spec, with_routes=with_routes)
    rank, ranks = topology.rank, range(topology.world_size)
    mine = {i: parcel for i, parcel in enumerate(parcels) if parcel.receiver == rank}
    tokens = {i: written[p.slot] for i, p in mine.items() if p.sender == rank}
    if not num_exchanged_bytes(parcels, spec, with_routes=with_routes):
        return tokens
    outgoing = [[p for p in parcels if p.sender == rank != p.receiver == r] for r in ranks]
    incoming = [[i for i, p in mine.items() if p.sender == r != rank] for r in ranks]
    sent = [layout.encode(written[p.slot]) for to_rank in outgoing for p in to_rank]
    sizes = [[layout.num_bytes(parcels[i].num_tokens) for i in of_rank] for of_rank in incoming]
    received = torch.empty(sum(map(sum, sizes)), dtype=torch.uint8)
    # On the CPU whatever the device: routes and tokens live there until they are packed.
    dist.all_to_all_single(
        received,
        torch.cat([*sent, torch.empty(0, dtype=torch.uint8)]),
        [sum(of_rank) for of_rank in sizes],
        [sum(layout.num_bytes(p.num_tokens) for p in to_rank) for to_rank in outgoing],
    )
    flat_sizes = [size for of_rank in sizes for size in of_rank]
    flat_indices = [i for of_rank in incoming for i in of_rank]
    bounds = pairwise([0, *accumulate(flat_sizes)])
    for i, (start, end) in zip(flat_indices, bounds, strict=True):
        tokens[i] = layout.decode(received[start:end], parcels[i].num_tokens)
    return tokens


def num_exchanged_bytes(parcels: Iterable[Parcel], spec: ModelSpec, *, with_routes: bool) -> int:
    """Bytes that change ranks, over all ranks."""
    layout = _Layout(spec, with_routes=with_routes)
    return sum(layout.num_bytes(p.num_tokens) for p in parcels if p.sender != p.receiver)


class _Layout:
    """How a rollout lies in bytes: ids (int32), log-probabilities (float32), mask, routes."""

    def __init__(self, spec: ModelSpec, *, with_routes: bool) -> None:
        self._route_shape = (spec.num_moe_layers, spec.top_k) if with_routes else (0, 0)
        self._route_dtype = spec.route_dtype

    def _num_bytes(self, num_tokens: int) -> tuple[int, int, int, int]:
        routes = (num_tokens - 1) * math.prod(self._route_shape) * self._route_dtype.itemsize
        return 4 * num_tokens, 4 * num_tokens, num_tokens, routes

    def num_bytes(self, num_tokens: int) -> int:
        return sum(self._num_bytes(num_tokens))

    def encode(self, tokens: RolloutTokens) -> Tensor:
        assert tokens.routed_experts.dtype == self._route_dtype
        parts = [tokens.token_ids.int(), tokens.rollout_logprobs.float(), tokens.loss_mask]
        if math.prod(self._route_shape):
            parts.append(tokens.routed_experts)
        return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])

    def decode(self, data: Tensor, num_tokens: int) -> RolloutTokens:
        # Cloned because a view of wider elements must begin at a multiple of their size.
        ids, logprobs, mask, routes = (
            part.clone() for part in data.split(self._num_bytes(num_tokens))
        )
        return RolloutTokens(
            token_ids=ids.view(torch.int32).long(),
            loss_mask=mask.view(torch.bool),
            rollout_logprobs=logprobs.view(torch.float32),
            routed_experts=routes.view(self._route_dtype).view(num_tokens - 1, *self._route_shape),
        )
