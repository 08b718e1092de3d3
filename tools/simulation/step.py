"""One RL step's rollouts under each policy: writing, scoring, and the four parts together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from benches.cost_model import CostModel
from simulation.cost import ReplicaAssumptions, assumed_cost
from simulation.jobs import Replica, ReplicaRun
from simulation.policies import POLICIES, ideal_seconds, scored_seconds
from simulation.workload import LengthLaw, Scenario, Workload, draw_workload

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoringAssumptions:
    """Verifiers and detokenisation of one replica. All assumptions."""

    num_workers: int = 32
    """Verifier processes."""
    median_seconds: float = 1.0
    """Of one verdict, lognormal."""
    sigma: float = 1.0
    timeout_seconds: float = 10.0
    detokenise_seconds: float = 10e-6
    """Per token on the generator's thread where workers do not do it: decoding incrementally takes
    5 us a token (two windows of six tokens, byte-level tokenizer, one core); as much for finding
    stop strings and bookkeeping."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise UserError(f"scoring.num_workers={self.num_workers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PolicySeconds:
    """Seconds of one step. Built by `run_policy`."""

    written: float
    """Until the last completion ends."""
    overlapped: float
    """Until the last verdict, scored as completions end."""
    serial: float
    """Until the last verdict, scored once a replica has written all."""
    idle_share: float
    """Share of replica-seconds spent waiting for the slowest replica to write."""


def run_policy(
    name: str, work: Workload, replica: Replica, cost: CostModel, scoring: ScoringAssumptions
) -> tuple[PolicySeconds, list[ReplicaRun]]:
    """Simulate every replica under the policy `name`."""
    runs = POLICIES[name](work, replica, cost)
    assert sum(run.num_written for run in runs) == work.lengths.sum()
    seconds = np.exp(scoring.sigma * work.verifier_noise) * scoring.median_seconds
    verdicts = iter(seconds.clip(max=scoring.timeout_seconds).flat)
    overlapped: list[float] = []
    serial: list[float] = []
    for run in runs:
        of_run = [float(next(verdicts)) for _ in run.ends]
        for total, how in ((overlapped, True), (serial, False)):
            total.append(scored_seconds(run.ends, of_run, scoring.num_workers, overlapped=how))
    written = [run.makespan for run in runs]
    result = PolicySeconds(
        written=max(written),
        overlapped=max(overlapped),
        serial=max(serial),
        idle_share=1 - sum(written) / len(written) / max(written),
    )
    return result, runs


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """All policies on the same workloads. Built by `run_scenario`."""

    scenario: Scenario
    by_policy: Mapping[str, tuple[PolicySeconds, ...]]
    """One for each seed."""
    ideal: tuple[float, ...]

    def written(self, policy: str) -> np.ndarray:
        """Seconds of each seed."""
        return np.array([result.written for result in self.by_policy[policy]])

    def speedup(self, policy: str, over: str = "even split") -> float:
        """Mean time of `over` by that of `policy`."""
        return float(self.written(over).mean() / self.written(policy).mean())


def run_scenario(
    scenario: Scenario,
    law: LengthLaw,
    seeds: Iterable[int],
    cost: CostModel,
    kv_tokens: int,
    scoring: ScoringAssumptions,
) -> ScenarioResult:
    """Every policy on every seed."""
    replica = Replica(max_num_seqs=scenario.num_slots, kv_tokens=kv_tokens)
    results: dict[str, list[PolicySeconds]] = {name: [] for name in POLICIES}
    ideal = []
    for seed in seeds:
        work = draw_workload(scenario, law, seed)
        for name, of_policy in results.items():
            of_policy.append(run_policy(name, work, replica, cost, scoring)[0])
        ideal.append(ideal_seconds(work, cost))
    return ScenarioResult(
        scenario=scenario,
        by_policy={name: tuple(of_policy) for name, of_policy in results.items()},
        ideal=tuple(ideal),
    )


PAPER = MappingProxyType(
    {
        "detokenisation in workers": 1.16,
        "overlapped rewards": 1.17,
        "FP8": 1.52,
        "length balancing": 1.66,
    }
)
"""Cumulative speed-ups of arXiv 2512.07710, table 1."""


def composite(
    scenario: Scenario,
    law: LengthLaw,
    seeds: Iterable[int],
    assumed: ReplicaAssumptions,
    scoring: ScoringAssumptions,
) -> dict[str, float]:
    """Cumulative speed-up after each part of `PAPER`, in its order.

    From bfloat16, detokenisation on the generator's thread, rewards after writing, and whole groups
    dealt at random; the last part is `predicted longest-first`.
    """
    bf16, bf16_tokens = assumed_cost("bfloat16", assumed)
    fp8, fp8_tokens = assumed_cost("fp8", assumed)
    per_sequence = bf16.per_sequence_seconds + scoring.detokenise_seconds
    slow = replace(bf16, per_sequence_seconds=per_sequence)
    rungs = (
        ("start", "whole groups", slow, bf16_tokens, False),
        ("detokenisation in workers", "whole groups", bf16, bf16_tokens, False),
        ("overlapped rewards", "whole groups", bf16, bf16_tokens, True),
        ("FP8", "whole groups", fp8, fp8_tokens, True),
        ("length balancing", "predicted longest-first", fp8, fp8_tokens, True),
    )
    totals = dict.fromkeys((name for name, *_ in rungs), 0.0)
    for seed in seeds:
        work = draw_workload(scenario, law, seed)
        for name, policy, cost, kv_tokens, is_overlapped in rungs:
            replica = Replica(max_num_seqs=scenario.num_slots, kv_tokens=kv_tokens)
            seconds, _ = run_policy(policy, work, replica, cost, scoring)
            totals[name] += seconds.overlapped if is_overlapped else seconds.serial
    return {name: totals["start"] / total for name, total in totals.items() if name != "start"}
