"""One batch gives one update, however ranks, experts and microbatches share the work.

All runs replay the same recorded routes: a single choice that flips on rounding would send two
runs apart. The routes are random, so they differ from what the routers would choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from compass.distributed import Topology, build_topology
from compass.means import Means
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, full_tensor, init_policy, local_part
from compass.models.policy import build_model, iter_init
from compass.rl.pack import (
    Minibatch,
    PackConfig,
    Trained,
    filler_microbatch,
    pack,
    pack_microbatch,
)
from compass.train.espo import EspoConfig
from compass.train.loss import GrpoConfig, GspoConfig, rollout_mean_weights, sft_loss
from compass.train.optim_config import OptimConfig
from compass.train.terms import LossTerms
from compass.train.trainer import Trainer
from compass.types import Microbatch, RolloutGroup, TokenScores
from tests.distributed_run import run_ranks
from tests.tiny_batch import SPEC, random_advantages, random_groups, random_tokens, written_by

TERMS = LossTerms(kl_coef=0.3, entropy_coef=0.05)
LOSSES = (
    *(EspoConfig().bind(), GrpoConfig().bind(), GspoConfig().bind(), sft_loss),
    TERMS.beside(GrpoConfig().bind(), rollout_mean_weights),
)
"""Of one optimizer step each; from the second on, the policy is not the old policy."""
NUM_GROUPS, GROUP_SIZE = 6, 3
OPTIM = OptimConfig(lr=1e-3, eps=4e-6, warmup_steps=0, weight_decay=0.1, max_grad_norm=0.2)
"""An eps of 1e-8 would let Adam blow up the rounding of gradients that are nearly zero."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the work is shared."""

    world_size: int = 1
    ep: int = 1
    dp_replicate: int = 1
    recompute: bool = False
    deal: str = "cards"
    max_tokens_per_microbatch: int = 70

    def topology(self, rank: int) -> Topology:
        return build_topology(
            rank,
            self.world_size,
            device=torch.device("cpu"),
            ep=self.ep,
            dp_replicate=self.dp_replicate,
        )


ONE_PIECE = Layout(max_tokens_per_microbatch=10_000)
LAYOUTS = {
    1: {
        "microbatches": Layout(),
        "a rollout each, recomputed": Layout(max_tokens_per_microbatch=1, recompute=True),
    },
    2: {
        "data": Layout(world_size=2),
        "data, lopsided": Layout(world_size=2, deal="lopsided"),
        "experts": Layout(world_size=2, ep=2),
        "experts, idle rank, recomputed": Layout(world_size=2, ep=2, deal="idle", recompute=True),
    },
    4: {
        "data, recomputed": Layout(world_size=4, recompute=True),
        "data and experts": Layout(world_size=4, ep=2),
        "data and experts, lopsided, recomputed": Layout(
            world_size=4, ep=2, deal="lopsided", recompute=True
        ),
        "replicas": Layout(world_size=4, dp_replicate=2, deal="idle"),
        "replicas and experts": Layout(world_size=4, dp_replicate=2, ep=2, recompute=True),
    },
}


def dealt(items: list, rank: int, layout: Layout) -> list:
    """This rank's part: in turns; one item for each rank but the first; or none for the last."""
    others = layout.world_size - 1
    if layout.deal == "cards":
        return items[rank :: layout.world_size]
    if layout.deal == "lopsided":
        return items[others:] if rank == 0 else [items[rank - 1]]
    return items[rank::others] if rank < others else []


def make_trainer(topology: Topology, layout: Layout) -> Trainer:
    cfg = PolicyConfig(activation_checkpointing=layout.recompute)
    policy, reference = (
        build_policy(SPEC, topology, cfg, lambda p, seed=seed: init_policy(p, seed))  # type: ignore[misc]
        for seed in (0, 1)
    )
    return Trainer(
        policy,
        topology,
        OPTIM,
        num_steps=len(LOSSES),
        temperature=0.8,
        reference=reference.requires_grad_(False),
        entropy_gradient=True,
    )


def make_minibatch(seed: int, topology: Topology, layout: Layout) -> Minibatch:
    groups = random_groups(NUM_GROUPS, GROUP_SIZE, seed)
    pairs = list(zip(groups, random_advantages(groups, seed), strict=True))
    mine: list[tuple[RolloutGroup, list[float]]] = dealt(pairs, topology.rank, layout)
    cfg = PackConfig(max_tokens_per_microbatch=layout.max_tokens_per_microbatch)
    held, written = written_by(topology.rank, [group for group, _ in mine], seed)
    batch = pack(
        held, [a for _, a in mine], written, SPEC, topology, cfg,
        numbers=range(len(held)), replay=True,
    )  # fmt: skip
    (minibatch,) = batch.minibatches
    if layout.deal == "cards":
        return minibatch
    # Balancing leaves no rank without work, so where the deal is uneven fillers are put in by
    # hand: the first rank idles last, the others first.
    filler = filler_microbatch(SPEC, replay=True)
    microbatches = minibatch.microbatches
    uneven = (*microbatches, filler) if topology.rank == 0 else (filler, *microbatches)
    return replace(minibatch, microbatches=uneven)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        name: full_tensor(parameter).detach().clone()
        for name, parameter in trainer.policy.named_parameters()
    }


def update(trainer: Trainer, minibatch: Minibatch, old: list[TokenScores], loss) -> dict:
    """One optimizer step; its metrics over all ranks."""
    means = Means()
    for microbatch, scores in zip(minibatch.microbatches, old, strict=True):
        of_pass, _ = trainer.forward_backward(
            microbatch,
            loss,
            num_rollouts=minibatch.num_rollouts,
            num_tokens=minibatch.num_tokens,
            old=scores,
        )
        means.update(of_pass)
    report = trainer.step()
    return {"grad_norm": report.grad_norm} | means.reduce(trainer.topology)


def train(rank: int, layout: Layout) -> dict[str, Any]:
    """Score all minibatches, then take a step on each."""
    topology = layout.topology(rank)
    trainer = make_trainer(topology, layout)
    minibatches = [make_minibatch(seed, topology, layout) for seed in range(len(LOSSES))]
    old = [[trainer.score(m)[0] for m in minibatch.microbatches] for minibatch in minibatches]
    steps = [
        update(trainer, minibatch, scores, loss)
        for minibatch, scores, loss in zip(minibatches, old, LOSSES, strict=True)
    ]
    return {
        "steps": steps,
        "weights": weights(trainer),
        "microbatches": [len(minibatch.microbatches) for minibatch in minibatches],
        "fillers": sum(len(m.rows) == 0 for b in minibatches for m in b.microbatches),
    }


# ---- side checks that ride in the same worlds


def replay_of_the_scoring_pass(rank: int, layout: Layout) -> dict[str, Any]:
    """`r2`: routes recorded while scoring are replayed in the update."""
    topology = layout.topology(rank)
    trainer = make_trainer(topology, layout)
    minibatch = make_minibatch(0, topology, layout)
    means, equal, changed = Means(), [], []
    for microbatch in minibatch.microbatches:
        live = replace(microbatch, routed_experts=None)
        scores, routes_TLK = trainer.score(live)
        replayed = replace(microbatch, routed_experts=routes_TLK)
        again, _ = trainer.score(replayed)
        equal.append(torch.equal(again.logprobs, scores.logprobs))
        recorded, _ = trainer.score(microbatch)
        if len(microbatch.rows):
            changed.append((recorded.logprobs - scores.logprobs).abs().max().item() > 0.1)
        of_pass, _ = trainer.forward_backward(
            replayed, LOSSES[1], num_rollouts=1, num_tokens=1, old=scores
        )
        means.update(of_pass)
    return {"equal": equal, "changed": changed, "metrics": means.reduce(topology)}


def poisoned(microbatch: Microbatch) -> Microbatch:
    return replace(microbatch, advantages=torch.full_like(microbatch.advantages, math.inf))


def shards(trainer: Trainer) -> list[Tensor]:
    """This rank's part of weights and moments."""
    tensors = list(trainer.policy.parameters())
    tensors += [t for p in trainer.policy.parameters() for t in trainer.optimizer.state[p].values()]
    return [local_part(t).detach().clone() for t in tensors]


def step_over_a_poisoned_batch(rank: int, layout: Layout) -> dict[str, Any]:
    """A good step, one in which only the last rank meets an infinity, and a good one again."""
    topology = layout.topology(rank)
    trainer, clean = (make_trainer(topology, layout) for _ in range(2))
    minibatches = [make_minibatch(seed, topology, layout) for seed in range(3)]
    bad = rank == layout.world_size - 1
    reports, states = [], []
    for i, minibatch in enumerate(minibatches):
        for microbatch in minibatch.microbatches:
            count, tokens = minibatch.num_rollouts, minibatch.num_tokens
            given = poisoned(microbatch) if bad and i == 1 else microbatch
            trainer.forward_backward(given, LOSSES[1], num_rollouts=count, num_tokens=tokens)
            if i != 1:
                clean.forward_backward(microbatch, LOSSES[1], num_rollouts=count, num_tokens=tokens)
        reports.append(trainer.step())
        states.append(shards(trainer))
        if i != 1:
            clean.step()
    return {
        "skipped": [report.skipped for report in reports],
        "counters": trainer.state_dict(),
        "untouched": all(map(torch.equal, states[0], states[1])),
        "moved": not all(map(torch.equal, states[1], states[2])),
        "as if it had not been": all(map(torch.equal, states[2], shards(clean))),
    }


def world(rank: int, world_size: int) -> dict[str, Any]:
    sharded = Layout(world_size=world_size, ep=2, deal="lopsided")
    return {
        "layouts": {name: train(rank, layout) for name, layout in LAYOUTS[world_size].items()},
        "replay": replay_of_the_scoring_pass(rank, sharded),
        "poisoned": step_over_a_poisoned_batch(rank, sharded),
    }


@pytest.fixture(scope="module")
def outcomes_of(tmp_path_factory) -> Callable[[int], list[dict[str, Any]]]:
    """What each rank of a world of that size saw; each runs once, where it is asked for."""
    return cache(lambda size: run_ranks(world, tmp_path_factory.mktemp("ranks"), size, size))


SIZES = [2, pytest.param(4, marks=pytest.mark.long)]
"""Four ranks on two cores take half a minute."""


@pytest.fixture(scope="module")
def in_one_piece(tmp_path_factory) -> dict[str, Any]:
    (outcome,) = run_ranks(train, tmp_path_factory.mktemp("one"), 1, ONE_PIECE)
    return outcome


# ---- the properties


def assert_same_training(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Gradient norms to a relative 2e-6, metrics to 1e-6, and weights to 1e-6, of the 3e-3 that
    they moved."""
    for step, (one, other) in enumerate(zip(got["steps"], expected["steps"], strict=True)):
        assert one == pytest.approx(other, rel=2e-6, abs=1e-6), f"step {step}"
    for name, weight in expected["weights"].items():
        assert (got["weights"][name] - weight).abs().max() <= 1e-6, name


def test_the_reference_clips_gradients_and_ratios_and_moves_every_kind_of_weight(in_one_piece):
    """Else the comparisons would prove less than they seem to."""
    assert in_one_piece["microbatches"] == [1] * len(LOSSES)
    assert in_one_piece["steps"][-1]["actor/kl_ref"] > 0.1
    assert all(step["grad_norm"] > OPTIM.max_grad_norm for step in in_one_piece["steps"])
    assert in_one_piece["steps"][1]["actor/ppo_kl"] != 0
    assert 0 < in_one_piece["steps"][2]["actor/pg_clipfrac"] < 1
    assert all(step["router/flip_rate"] > 0.3 for step in in_one_piece["steps"])
    for name, initial in iter_init(build_model(SPEC), 0):
        assert (in_one_piece["weights"][name] - initial).abs().max() > 2e-3, name


@pytest.mark.parametrize("name", LAYOUTS[1])
def test_accumulated_microbatches_are_one_batch(name, in_one_piece, alone):
    outcome = train(0, LAYOUTS[1][name])
    assert min(outcome["microbatches"]) > 2
    assert_same_training(outcome, in_one_piece)


@pytest.mark.parametrize(
    ("world_size", "name"),
    [
        pytest.param(size, name, marks=[pytest.mark.long] if size == 4 else [])
        for size in (2, 4)
        for name in LAYOUTS[size]
    ],
)
def test_every_layout_trains_alike(world_size, name, outcomes_of, in_one_piece):
    outcomes = [rank["layouts"][name] for rank in outcomes_of(world_size)]
    for outcome in outcomes:
        assert outcome["steps"] == outcomes[0]["steps"]
    assert_same_training(outcomes[0], in_one_piece)
    if LAYOUTS[world_size][name].deal != "cards":
        assert outcomes[-1]["fillers"] > 0


@pytest.mark.parametrize("world_size", SIZES)
def test_routes_of_the_scoring_pass_replayed_give_its_very_logprobs(world_size, outcomes_of):
    for rank in outcomes_of(world_size):
        replay = rank["replay"]
        assert all(replay["equal"])
        assert all(replay["changed"])
        assert replay["metrics"]["router/flip_rate"] == 0
        assert replay["metrics"]["router/token_flip_rate"] == 0
    assert any(rank["replay"]["changed"] for rank in outcomes_of(world_size))


@pytest.mark.parametrize("world_size", SIZES)
def test_a_gradient_that_is_not_finite_skips_the_step_on_every_rank(world_size, outcomes_of):
    for rank in outcomes_of(world_size):
        assert rank["poisoned"] == {
            "skipped": [False, True, False],
            "counters": {"num_updates": 2, "num_skipped": 1},
            "untouched": True,
            "moved": True,
            "as if it had not been": True,
        }


def test_against_its_own_weights_the_kl_is_zero_to_the_bit(alone):
    """Policy and reference follow the same routes, whatever they would choose."""
    policy = make_trainer(alone, ONE_PIECE).policy
    trainer = Trainer(policy, alone, OPTIM, num_steps=1, temperature=0.8, reference=policy)
    minibatch = make_minibatch(0, alone, Layout())
    loss = LossTerms(kl_coef=1.0, entropy_coef=0.0).beside(LOSSES[1], rollout_mean_weights)
    old = [trainer.score(microbatch)[0] for microbatch in minibatch.microbatches]
    assert update(trainer, minibatch, old, loss)["actor/kl_ref"] == 0


def test_a_skipped_step_does_not_advance_the_schedule_and_a_resumed_run_keeps_its_place(alone):
    """Warm-up in quarters: the second quarter is tried twice."""
    policy = make_trainer(alone, ONE_PIECE).policy
    cfg = OptimConfig(lr=1.0, warmup_steps=4, weight_decay=0.0)
    trainer, resumed = (Trainer(policy, alone, cfg, num_steps=8) for _ in range(2))
    reports = [trainer.step()]
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    reports += [trainer.step(), trainer.step()]
    resumed.load_state_dict(trainer.state_dict())
    reports.append(resumed.step())
    assert [report.skipped for report in reports] == [False, True, False, False]
    assert [report.lr for report in reports] == [0.25, 0.5, 0.5, 0.75]


def test_counters_survive_a_checkpoint(alone):
    trainer, resumed = (make_trainer(alone, ONE_PIECE) for _ in range(2))
    trainer.step()
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.state_dict() == {"num_updates": 1, "num_skipped": 0}


@pytest.mark.parametrize("routes", [[0, 0], [0, 6], [6, 1]], ids=["twice", "range", "first"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_routes_that_no_router_made_are_refused_by_place(routes, dtype, alone) -> None:
    tokens = random_tokens(seed=0)
    recorded = tokens.routed_experts.to(dtype)
    recorded[2, 1] = torch.tensor(routes).to(dtype)
    items = [Trained(tokens=replace(tokens, routed_experts=recorded), advantage=1.0)]
    microbatch = pack_microbatch(items, SPEC, replay=True)
    trainer = make_trainer(alone, ONE_PIECE)
    with pytest.raises(ValueError, match=r"routed_experts\[2, 1\] = .*expected 2 distinct ids"):
        trainer.score(microbatch)


def test_routes_are_replayed_alike_from_any_type(alone) -> None:
    tokens = random_tokens(seed=0)
    trainer = make_trainer(alone, ONE_PIECE)
    scores = [
        trainer.score(
            pack_microbatch(
                [
                    Trained(
                        tokens=replace(tokens, routed_experts=tokens.routed_experts.to(dtype)),
                        advantage=1.0,
                    )
                ],
                SPEC,
                replay=True,
            )
        )[0]
        for dtype in (torch.uint8, torch.uint16, torch.int64)
    ]
    assert torch.equal(scores[0].logprobs, scores[1].logprobs)
    assert torch.equal(scores[0].logprobs, scores[2].logprobs)
