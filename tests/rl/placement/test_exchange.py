"""What changes ranks arrives once and whole, and nothing else travels; a batch packed after it is
the batch packed on one rank."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.models.specs import ModelSpec
from compass.rl.pack import PackConfig, StayWith, pack
from compass.rl.placement.exchange import Parcel, exchange, num_exchanged_bytes
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.types import Microbatch, RolloutGroup, RolloutTokens
from tests.distributed_run import run_ranks
from tests.rl.batches import SPEC, make_group, make_rollout, tokens_of
from tests.tiny_batch import random_routes

WORLDS = (2, 4)
MANY = replace(SPEC, num_experts=300)
"""Expert ids take two bytes."""
DENSE = replace(SPEC, num_experts=0, top_k=0)
CASES = {
    "routes of a byte": (SPEC, True),
    "routes of two bytes": (MANY, True),
    "routes stay": (SPEC, False),
    "dense": (DENSE, True),
}
NUM_ROLLOUTS = 24


def tokens(spec: ModelSpec, i: int) -> RolloutTokens:
    """Of rollout i, whose length varies; the shortest have two tokens."""
    n = 2 + 7 * i % 11
    noise = torch.Generator().manual_seed(i)
    routes = torch.zeros(n - 1, 0, 0)
    if spec.num_moe_layers:
        shape = (n - 1, spec.num_moe_layers, spec.top_k, spec.num_experts)
        routes = random_routes(*shape, seed=i)
    return RolloutTokens(
        token_ids=torch.randint(0, 2**31 - 1, (n,), generator=noise),
        loss_mask=torch.rand(n, generator=noise) < 0.5,
        rollout_logprobs=-torch.rand(n, generator=noise),
        routed_experts=routes.to(torch.uint16 if spec.num_experts > 256 else torch.uint8),
    )


def same(got: RolloutTokens, expected: RolloutTokens, *, with_routes: bool) -> bool:
    names = ["token_ids", "loss_mask", "rollout_logprobs"] + ["routed_experts"] * with_routes
    return all(
        getattr(got, name).dtype == getattr(expected, name).dtype
        and getattr(got, name).tolist() == getattr(expected, name).tolist()
        for name in names
    )


def exchanged(topology: Topology, spec: ModelSpec, seed: int, *, with_routes: bool) -> dict:
    """Random parcels, in random order; rank 1 sends nothing under the odd seed."""
    draw, rank = random.Random(seed), topology.rank
    written, slots = RankRollouts(rank), Counter[int]()
    sent: list[tuple[Parcel, RolloutTokens]] = []
    for i in range(NUM_ROLLOUTS):
        sender, receiver = (draw.randrange(topology.world_size) for _ in range(2))
        if seed % 2 and sender == 1:
            sender = 0
        content = tokens(spec, i)
        if sender == rank:
            written.add(content)
        parcel = Parcel(
            sender=sender,
            slot=slots[sender],
            receiver=receiver,
            num_tokens=len(content.token_ids),
        )
        slots[sender] += 1
        sent.append((parcel, content))
    draw.shuffle(sent)
    parcels = [parcel for parcel, _ in sent]
    got = exchange(parcels, written, topology, spec, with_routes=with_routes)
    whole = all(
        same(got[i], content, with_routes=with_routes or parcel.sender == rank)
        for i, (parcel, content) in enumerate(sent)
        if parcel.receiver == rank
    )
    return {
        "those for me": got.keys() == {i for i, p in enumerate(parcels) if p.receiver == rank},
        "whole": whole,
        "bytes": num_exchanged_bytes(parcels, spec, with_routes=with_routes),
        "moved tokens": [p.num_tokens for p in parcels if p.sender != p.receiver],
    }


# ---- packing


MINIBATCHES = {8: 2, 5: 4}
"""Number of minibatches of a batch of so many groups: as many to each rank, and not."""


def batch(num_groups: int) -> list[RolloutGroup]:
    draw = random.Random(5)
    return [
        make_group(str(g), [make_rollout(f"{g}/{i}", 2, draw.randint(1, 30)) for i in range(4)])
        for g in range(num_groups)
    ]


def packed(
    topology: Topology, num_groups: int = 8, seed: int = 6, stay_with: StayWith = "writers"
) -> dict[str, Any]:
    """The batch, each rollout written by a random rank and at home by the cards."""
    draw, written, groups = random.Random(seed), RankRollouts(topology.rank), []
    slots = Counter[int]()
    for group in batch(num_groups):
        rollouts = []
        for r in group.rollouts:
            holder = draw.randrange(topology.world_size)
            if holder == topology.rank:
                written.add(tokens_of(r))
            rollouts.append(replace(r, holder=holder, slot=slots[holder]))
            slots[holder] += 1
        groups.append(replace(group, rollouts=tuple(rollouts)))
    mine = groups[topology.rank :: topology.world_size]
    advantages = [[0.0, 1.0, -0.5, 2.0] for _ in mine]
    cfg = PackConfig(num_minibatches=MINIBATCHES[num_groups], max_tokens_per_microbatch=60)
    result = pack(
        mine, advantages, written, SPEC, topology, cfg,
        numbers=range(topology.rank, num_groups, topology.world_size),
        replay=True, stay_with=stay_with,
    )  # fmt: skip
    return {
        "sequences": [
            sorted(s for m in minibatch.microbatches for s in sequences(m))
            for minibatch in result.minibatches
        ],
        "counts": [
            (m.num_rollouts, m.num_tokens, m.num_trained_rollouts) for m in result.minibatches
        ],
        "num_microbatches": [len(m.microbatches) for m in result.minibatches],
        "imbalance": result.imbalance,
        "bytes": result.exchanged_bytes,
    }


def sequences(microbatch: Microbatch) -> list[tuple]:
    """Everything in a microbatch, by sequence."""
    found, start = [], 0
    assert microbatch.routed_experts is not None
    for b, length in enumerate(microbatch.sequence_lengths):
        end, rows = start + length, microbatch.sequence_ids == b
        found.append(
            (
                microbatch.token_ids[start:end].tolist(),
                microbatch.routed_experts[start:end].tolist(),
                (microbatch.rows[rows] - start).tolist(),
                microbatch.targets[rows].tolist(),
                microbatch.advantages[rows].tolist(),
                microbatch.rollout_logprobs[rows].tolist(),
            )
        )
        start = end
    return [sequence for sequence in found if sequence[2]]


def on_a_rank(rank: int, world_size: int) -> dict[str, Any]:
    topology = build_topology(rank, world_size, device=torch.device("cpu"))
    return {
        "packed": {num_groups: packed(topology, num_groups) for num_groups in MINIBATCHES},
        **{
            stay_with: [packed(topology, 8, seed, stay_with)["sequences"] for seed in range(3)]
            for stay_with in get_args(StayWith)
        },
        **{
            name: [exchanged(topology, spec, seed, with_routes=with_routes) for seed in range(2)]
            for name, (spec, with_routes) in CASES.items()
        },
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {size: run_ranks(on_a_rank, folder, size, size) for size in WORLDS}


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_every_parcel_arrives_whole_and_only_where_it_should(name, world_size, worlds):
    spec, with_routes = CASES[name]
    per_route = 2 if spec is MANY else 1
    routes = spec.num_moe_layers * spec.top_k * per_route if with_routes else 0
    for rank in worlds[world_size]:
        for outcome in rank[name]:
            assert outcome["those for me"]
            assert outcome["whole"]
            moved = outcome["moved tokens"]
            assert len(moved) > 4
            assert outcome["bytes"] == sum(n * (4 + 4 + 1) + (n - 1) * routes for n in moved)


@pytest.mark.parametrize("num_groups", MINIBATCHES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_together_pack_what_one_rank_packs(world_size, num_groups, worlds, topology):
    alone = packed(topology, num_groups)
    assert alone["bytes"] == 0
    assert all(alone["num_microbatches"])
    by_rank = [rank["packed"][num_groups] for rank in worlds[world_size]]
    for m, expected in enumerate(alone["sequences"]):
        together = sorted(s for rank in by_rank for s in rank["sequences"][m])
        assert together == expected
    for rank in by_rank:
        assert rank["counts"] == alone["counts"]
        assert rank["num_microbatches"] == by_rank[0]["num_microbatches"]
        assert rank["bytes"] == by_rank[0]["bytes"] > 0
        assert rank["imbalance"] >= 1
        # A minibatch of a single group has fewer rollouts to train than four ranks can share.
        assert rank["imbalance"] < 1.2 or num_groups < 2 * MINIBATCHES[num_groups]


@pytest.mark.parametrize("world_size", WORLDS)
def test_with_homes_it_does_not_matter_who_wrote_what(world_size, worlds):
    """To the order within every minibatch of every rank; with writers it does."""
    for rank in worlds[world_size]:
        assert rank["homes"][0] == rank["homes"][1] == rank["homes"][2]
    assert any(rank["writers"][0] != rank["writers"][1] for rank in worlds[world_size])
