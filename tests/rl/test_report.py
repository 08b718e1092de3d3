"""Batch metrics against plain loops over the rollouts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from compass.rl.pack import PackConfig
from compass.rl.report import (
    batch_metrics,
    load_metrics,
    overlap_metrics,
    throughput_metrics,
)
from compass.rl.rollout import all_rollouts
from compass.types import Rollout, RolloutGroup
from tests.rl.batches import (
    SPEC,
    group_of_verdicts,
    make_group,
    make_rollout,
    make_score,
    pack_batch,
)


def mixed_groups() -> list[RolloutGroup]:
    """One group of each kind, with broken verifiers, truncation and named components."""
    timeout = make_score(None, "timeout after 5 s")
    crash = make_score(None, "crash: SIGSEGV")
    formatted = replace(make_score(0.5), breakdown={"format": 1.0})
    unformatted = replace(make_score(0.0), breakdown={"format": 0.0})
    return [
        group_of_verdicts("right", [1.0, 1.0]),
        group_of_verdicts("wrong", [0.0, 0.0, 0.0]),
        group_of_verdicts("half", [0.5, 0.5]),
        make_group("broken", [make_rollout("t", score=timeout), make_rollout("c", score=crash)]),
        make_group(
            "mixed",
            [
                make_rollout("m0", 1, 7, score=formatted, finish_reason="length"),
                make_rollout("m1", 4, 1, score=unformatted),
                make_rollout("m2", 2, 2, score=timeout),
            ],
        ),
    ]


def test_each_metric_is_that_of_a_loop(topology):
    groups = mixed_groups()
    rollouts = all_rollouts(groups)
    verdicts = [r.score.verdict for r in rollouts if r.score.valid]
    mean = sum(verdicts) / len(verdicts)
    lengths = [int(r.loss_mask.sum()) for r in rollouts]
    got = batch_metrics(groups, SPEC, topology)
    assert got.pop("router/max_violation") >= 0  # has its own test
    assert got == pytest.approx(
        {
            "reward/mean": mean,
            "reward/std": math.sqrt(sum((v - mean) ** 2 for v in verdicts) / len(verdicts)),
            "reward/invalid": 3 / 12,
            "reward/timeouts": 2 / 12,
            "reward/seconds": 0.0,
            "reward/format/mean": 0.5,
            "zv/frac_flat": 4 / 5,
            "zv/all_right_frac": 1 / 5,
            "zv/all_wrong_frac": 1 / 5,
            "zv/other_frac": 2 / 5,
            "response_length/mean": sum(lengths) / 12,
            "response_length/max": 7,
            "response_length/min": 1,
            "response_length/truncated_frac": 1 / 12,
            "router/bytes": sum((len(r.token_ids) - 1) * 2 * 2 for r in rollouts),
        }
    )


def with_routes(rollout: Rollout, experts: list[list[int]]) -> Rollout:
    """The rollout with every token at these experts: one pair for each layer."""
    routes = torch.tensor(experts, dtype=torch.uint8).expand(len(rollout.routed_experts), -1, -1)
    return replace(rollout, routed_experts=routes.contiguous())


def test_violation_is_that_of_the_worst_layer(topology):
    balanced = [with_routes(make_rollout(str(i)), [[2 * i, 2 * i + 1]] * 2) for i in range(3)]
    assert load_metrics(balanced, SPEC, topology)["router/max_violation"] == 0
    # The second layer sends every token to experts 0 and 1 of 6: 3 times the mean load.
    lopsided = [with_routes(r, [[2 * i, 2 * i + 1], [0, 1]]) for i, r in enumerate(balanced)]
    assert load_metrics(lopsided, SPEC, topology)["router/max_violation"] == 2


def test_a_dense_model_has_no_load(topology):
    dense = replace(SPEC, num_experts=0, top_k=0, dense_layers=())
    assert load_metrics([make_rollout("a")], dense, topology) == {}


def test_throughput_counts_what_the_policy_wrote_and_what_was_trained(topology):
    groups = mixed_groups()
    advantages = [[0.0] * len(group.rollouts) for group in groups[:-1]] + [[1.0, -1.0, 0.0]]
    minibatches = pack_batch(groups, advantages, topology, PackConfig())
    metrics = throughput_metrics(groups, minibatches, topology, step_seconds=2.0)
    written = sum(int(r.loss_mask.sum()) for r in all_rollouts(groups))
    assert metrics["perf/tokens_per_s"] == written / 2
    assert metrics["actor/trained_frac"] == 2 / 12
    assert metrics["actor/denominator_frac"] == 1
    trained = pack_batch(groups, advantages, topology, PackConfig(denominator="trained"))
    metrics = throughput_metrics(groups, trained, topology, step_seconds=2.0)
    assert metrics["actor/denominator_frac"] == metrics["actor/trained_frac"] == 2 / 12
    assert metrics["perf/padding_frac"] == 0
    assert 0 < metrics["perf/max_memory_gb"] < 1000


def test_overlap_is_the_share_of_verifier_time_that_nobody_waited_for(topology):
    """Closed form: 2 workers that are waited for 0.5 s expose at most 1 s of work."""
    score = replace(make_score(1.0), seconds=0.25)
    rollouts = [make_rollout(f"r{i}", score=score) for i in range(12)]
    groups = [make_group(f"g{i}", rollouts[4 * i : 4 * i + 4]) for i in range(3)]

    def overlap(wait_seconds: float) -> dict[str, float]:
        return overlap_metrics(groups, topology, wait_seconds=wait_seconds, num_workers=2)

    assert overlap(0.0) == {"reward/overlap_frac": 1.0}
    assert overlap(0.5)["reward/overlap_frac"] == pytest.approx(1 - 1 / 3)
    assert overlap(100.0)["reward/overlap_frac"] == 0.0
    assert overlap_metrics([], topology, wait_seconds=0.1, num_workers=1) == {}
