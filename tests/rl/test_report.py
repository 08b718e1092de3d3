"""Batch metrics against plain loops over the rollouts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from compass.models.flops import forward_flops
from compass.rl.pack import PackConfig, PackedBatch
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.report import (
    batch_metrics,
    load_metrics,
    overlap_metrics,
    schedule_metrics,
    tail_idle_frac,
    throughput_metrics,
    utilisation_metrics,
)
from compass.rl.rollout import all_rollouts
from compass.types import RolloutGroup, RolloutTokens
from tests.rl.batches import (
    SPEC,
    group_of_verdicts,
    make_group,
    make_rollout,
    make_score,
    pack_batch,
    tokens_of,
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
    lengths = [r.num_completion_tokens for r in rollouts]
    got = batch_metrics(groups, topology)
    assert got == pytest.approx(
        {
            "reward/mean": mean,
            "reward/std": math.sqrt(sum((v - mean) ** 2 for v in verdicts) / len(verdicts)),
            "reward/invalid": 3 / 12,
            "reward/timeouts": 2 / 12,
            "reward/seconds": 0.0,
            "reward/format/mean": 0.5,
            "reward/verdict": mean,
            "reward/math/mean": mean,
            "zv/math/frac_flat": 4 / 5,
            "zv/frac_flat": 4 / 5,
            "zv/frac_tied": 4 / 5,
            "zv/all_right_frac": 1 / 5,
            "zv/all_wrong_frac": 1 / 5,
            "zv/other_frac": 2 / 5,
            "response_length/mean": sum(lengths) / 12,
            "response_length/max": 7,
            "response_length/min": 1,
            "response_length/truncated_frac": 1 / 12,
        }
    )


def test_rewards_and_verdicts_are_told_apart_and_domains_too(topology):
    """DAPO's -1 and 1, and a tenth for the form of a wrong answer."""
    right, wrong = make_score(1.0, reward=1.0), make_score(0.0, reward=-1.0)
    formed = make_score(0.0, reward=0.1)
    groups = [
        make_group("a", [make_rollout("a0", score=right), make_rollout("a1", score=wrong)]),
        make_group("b", [make_rollout("b0", score=wrong), make_rollout("b1", score=formed)]),
    ]
    groups[1] = replace(groups[1], prompt=replace(groups[1].prompt, domain="code"))
    got = batch_metrics(groups, topology)
    assert got["reward/mean"] == pytest.approx((1 - 1 - 1 + 0.1) / 4)
    assert got["reward/verdict"] == pytest.approx(1 / 4)
    assert (got["reward/math/mean"], got["reward/code/mean"]) == pytest.approx((0.0, -0.45))
    assert (got["zv/frac_flat"], got["zv/frac_tied"], got["zv/all_wrong_frac"]) == (0, 0.5, 0.5)
    assert (got["zv/math/frac_flat"], got["zv/code/frac_flat"]) == (0, 0)


def with_routes(tokens: RolloutTokens, experts: list[list[int]]) -> RolloutTokens:
    """The rollout with every token at these experts: one pair for each layer."""
    routes = torch.tensor(experts, dtype=torch.uint8).expand(len(tokens.routed_experts), -1, -1)
    return replace(tokens, routed_experts=routes.contiguous())


def test_violation_is_that_of_the_worst_layer(topology):
    tokens = [tokens_of(make_rollout(str(i), 2, 3 + i)) for i in range(3)]
    num_rows = sum(len(t.token_ids) - 1 for t in tokens)
    assert load_metrics(tokens, SPEC, topology)["router/bytes"] == num_rows * 2 * 2
    balanced = [
        with_routes(tokens_of(make_rollout(str(i))), [[2 * i, 2 * i + 1]] * 2) for i in range(3)
    ]
    assert load_metrics(balanced, SPEC, topology)["router/max_violation"] == 0
    # The second layer sends every token to experts 0 and 1 of 6: 3 times the mean load.
    lopsided = [with_routes(t, [[2 * i, 2 * i + 1], [0, 1]]) for i, t in enumerate(balanced)]
    assert load_metrics(lopsided, SPEC, topology)["router/max_violation"] == 2


def test_a_dense_model_has_no_load(topology):
    dense = replace(SPEC, num_experts=0, top_k=0, dense_layers=())
    assert load_metrics([tokens_of(make_rollout("a"))], dense, topology) == {}


def test_throughput_counts_what_the_policy_wrote_and_what_was_trained(topology):
    groups = mixed_groups()
    advantages = [[0.0] * len(group.rollouts) for group in groups[:-1]] + [[1.0, -1.0, 0.0]]
    batch = pack_batch(groups, advantages, topology, PackConfig())
    metrics = throughput_metrics(groups, batch, topology, step_seconds=2.0)
    written = sum(r.num_completion_tokens for r in all_rollouts(groups))
    assert metrics["perf/tokens_per_s"] == written / 2
    assert metrics["actor/trained_frac"] == 2 / 12
    assert metrics["actor/denominator_frac"] == 1
    trained = pack_batch(groups, advantages, topology, PackConfig(denominator="trained"))
    metrics = throughput_metrics(groups, trained, topology, step_seconds=2.0)
    assert metrics["actor/denominator_frac"] == metrics["actor/trained_frac"] == 2 / 12
    assert metrics["perf/padding_frac"] == 0
    assert 0 < metrics["perf/max_memory_gb"] < 1000


def test_utilisation_is_what_the_trained_sequences_need(topology):
    """Two of three rollouts train: 8 and 5 tokens, fed without their last, 7 and 1 scored."""
    groups = mixed_groups()[-1:]
    batch = pack_batch(groups, [[1.0, -1.0, 0.0]], topology, PackConfig())
    forward = forward_flops(SPEC, 7, num_scored=7) + forward_flops(SPEC, 4, num_scored=1)
    metrics = utilisation_metrics(batch, SPEC, topology, update_seconds=2.0)
    assert metrics == {"perf/tflops": pytest.approx(3 * forward / 2 / 1e12)}
    nothing = pack_batch(groups, [[0.0, 0.0, 0.0]], topology, PackConfig())
    assert utilisation_metrics(nothing, SPEC, topology, update_seconds=2.0) == {"perf/tflops": 0}


def test_overlap_is_the_share_of_verifier_time_that_nobody_waited_for(topology):
    """Closed form: 2 workers that are waited for 0.5 s expose at most 1 s of 3."""

    def overlap(wait_seconds: float) -> dict[str, float]:
        return overlap_metrics(3.0, topology, wait_seconds=wait_seconds, num_workers=2)

    assert overlap(0.0) == {"reward/overlap_frac": 1.0}
    assert overlap(0.5)["reward/overlap_frac"] == pytest.approx(1 - 1 / 3)
    assert overlap(100.0)["reward/overlap_frac"] == 0.0
    assert overlap_metrics(0.0, topology, wait_seconds=0.1, num_workers=1) == {}


def test_idle_slots_are_those_that_ended_early_or_never_began():
    """Three slots of 10 s on two ranks: 1, 4 and 10 s busy; 6 s busy and two never used."""
    assert tail_idle_frac([[4, 10, 1], [6]], num_slots=8) == pytest.approx(1 - 21 / 60)
    # Two slots: the completion that ended at 1 s was followed by another in its slot.
    assert tail_idle_frac([[4, 10, 1], [6]], num_slots=2) == pytest.approx(1 - 20 / 40)
    assert tail_idle_frac([[5, 5]], num_slots=2) == 0
    assert tail_idle_frac([[], []], num_slots=2) == 0


def test_the_slowest_rank_is_compared_with_the_mean(topology):
    written = RankRollouts(0)
    written.end_seconds = [1.0, 3.0]
    batch = PackedBatch(minibatches=(), exchanged_bytes=7, imbalance=1.5)
    assert schedule_metrics(written, batch, topology, num_slots=2) == {
        "sched/tail_idle_frac": pytest.approx(1 / 3),
        "sched/makespan_over_ideal": 1.0,
        "sched/imbalance": 1.5,
        "sched/exchange_bytes": 7.0,
    }
