"""The simulator against the scheduler itself, step by step, and against closed forms."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from benches.cost_model import CostModel
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.cost import ReplicaAssumptions, assumed_cost, read_cost
from simulation.jobs import Job, Replica, run_waves
from simulation.policies import POLICIES, ideal_seconds, scored_seconds
from simulation.replica import run_queue, run_replica
from simulation.workload import SCENARIOS, LengthLaw, Scenario, draw_workload

from compass.errors import UserError
from compass.generate.block_manager import BlockManager
from compass.generate.scheduler import Scheduler, Step
from compass.generate.sequence import Request, Sequence
from compass.types import SamplingParams

ROOT = Path(__file__).parents[2]
COST = CostModel(
    base_seconds=1.0,
    expert_seconds=0.5,
    missed_share=0.75,
    per_sequence_seconds=0.1,
    per_context_token_seconds=0.01,
    per_prompt_token_seconds=0.03,
)
ROOMY = Replica(max_num_seqs=1000, kv_tokens=10**9, max_tokens_per_step=10**6)
SMALL = Scenario(
    name="small",
    max_tokens=200,
    sigma=1.0,
    num_slots=8,
    num_replicas=3,
    num_prompts=40,
    group_size=4,
)
STOP = 0


# ---- the scheduler as the oracle


class Served(NamedTuple):
    ends: list[float]
    num_steps: int
    num_fed: int
    num_preemptions: int


class RealRun:
    """Drives `Scheduler` with blocks of one token, and adds up what its steps cost."""

    def __init__(self, jobs: list[Job], replica: Replica, num_turns: int) -> None:
        self.jobs = jobs
        self.scheduler = Scheduler(
            BlockManager(replica.kv_tokens, 1),
            max_num_seqs=replica.max_num_seqs,
            max_tokens_per_step=replica.max_tokens_per_step,
            max_seq_len=10**6,
            seed=0,
            num_turns=num_turns,
        )
        self.index: dict[tuple[str, int], int] = {}
        most = max(job.num_tokens for job in jobs)
        for group in dict.fromkeys(job.group for job in jobs):
            members = [i for i, job in enumerate(jobs) if job.group == group]
            first = jobs[members[0]]
            sampling = SamplingParams(max_completion_tokens=most, stop_token_ids=(STOP,))
            self.scheduler.add(
                Request(
                    prompt_id=f"{group}",
                    prompt_token_ids=[1 + group] * first.num_prompt_tokens,  # no two alike
                    num_samples=len(members),
                    sampling=sampling,
                    priority=first.priority,
                )
            )
            self.index |= {(f"{group}", sample): i for sample, i in enumerate(members)}
        self.decoding: set[int] = set()
        """Sequences whose cache holds all but their last token, which a step gave them."""

    def serve(self) -> Served:
        scheduler, seconds, num_steps, num_fed = self.scheduler, 0.0, 0, 0
        ends = [0.0] * len(self.jobs)
        while scheduler.has_work:
            step = scheduler.schedule()
            context, fed = self._read(step)
            seconds += COST.seconds(len(step.samples), context, fed)
            num_steps += 1
            num_fed += fed
            tokens = [STOP if self._is_last(s.sequence) else 1 for s in step.samples]
            self.decoding |= {id(s.sequence) for s in step.samples}
            for sequence in scheduler.update(step, tokens, [0.0] * len(tokens)):
                scheduler.release(sequence)
                ends[self._job(sequence)] = seconds
        return Served(ends, num_steps, num_fed, scheduler.num_preemptions)

    def _read(self, step: Step) -> tuple[int, int]:
        """Context of the step's decodes, and tokens fed besides."""
        begun = [chunk.sequence for chunk in step.chunks if chunk.start == 0]
        lost = [s for s in self.scheduler.waiting if s.num_computed_tokens == 0]
        self.decoding -= {id(sequence) for sequence in begun + lost}
        decodes = [chunk for chunk in step.chunks if id(chunk.sequence) in self.decoding]
        num_tokens = sum(chunk.num_tokens for chunk in step.chunks)
        return sum(chunk.start + 1 for chunk in decodes), num_tokens - len(decodes)

    def _job(self, sequence: Sequence) -> int:
        return self.index[sequence.request.prompt_id, sequence.sample]

    def _is_last(self, sequence: Sequence) -> bool:
        return len(sequence.logprobs) + 1 == self.jobs[self._job(sequence)].num_tokens


@st.composite
def jobs_of(draw: st.DrawFn, max_group_size: int) -> list[Job]:
    jobs = []
    for group in range(draw(st.integers(1, 6))):
        num_prompt_tokens, priority = draw(st.integers(1, 12)), draw(st.integers(0, 2))
        lengths = draw(st.lists(st.integers(1, 15), min_size=1, max_size=max_group_size))
        jobs += [Job(group, num_prompt_tokens, length, priority) for length in lengths]
    return jobs


def check_against_the_scheduler(jobs: list[Job], replica: Replica, num_turns: int) -> None:
    turn_tokens = -(-max(job.num_tokens for job in jobs) // num_turns)
    jobs = [job._replace(turn_tokens=turn_tokens) for job in jobs]
    real = RealRun(jobs, replica, num_turns).serve()
    simulated = run_replica(jobs, replica, COST)
    assert simulated.ends == pytest.approx(real.ends, rel=1e-9)
    assert simulated.num_steps == real.num_steps
    assert simulated.num_prompt_tokens_fed == real.num_fed
    assert simulated.num_preemptions == real.num_preemptions
    assert simulated.num_written == sum(job.num_tokens for job in jobs)
    assert simulated.max_kv_tokens <= replica.kv_tokens


turns = st.sampled_from([1, 1, 2, 3, 5, 15])


@settings(max_examples=300)
@given(
    jobs=jobs_of(max_group_size=5),
    seats=st.integers(1, 6),
    spare_tokens=st.integers(0, 20),
    num_turns=turns,
)
def test_every_step_is_the_schedulers_with_groups_and_chunked_prompts(
    jobs, seats, spare_tokens, num_turns
):
    replica = Replica(
        max_num_seqs=seats, kv_tokens=10_000, max_tokens_per_step=seats + spare_tokens
    )
    check_against_the_scheduler(jobs, replica, num_turns)


@settings(max_examples=300)
@given(
    jobs=jobs_of(max_group_size=1),
    seats=st.integers(1, 6),
    spare=st.integers(0, 30),
    num_turns=turns,
)
def test_every_step_is_the_schedulers_when_the_cache_is_short(jobs, seats, spare, num_turns):
    longest = max(j.num_prompt_tokens for j in jobs) + max(j.num_tokens for j in jobs) - 1
    replica = Replica(max_num_seqs=seats, kv_tokens=longest + spare, max_tokens_per_step=1000)
    check_against_the_scheduler(jobs, replica, num_turns)


@given(jobs=jobs_of(max_group_size=5), seats=st.integers(1, 6), spare=st.integers(0, 10))
def test_groups_in_a_short_cache_lose_nothing_and_stay_within_it(jobs, seats, spare):
    longest = max(j.num_prompt_tokens + j.num_tokens - 1 for j in jobs)
    replica = Replica(max_num_seqs=seats, kv_tokens=longest + spare)
    run = run_replica(jobs, replica, COST)
    assert run.num_written == sum(job.num_tokens for job in jobs)
    assert run.max_kv_tokens <= replica.kv_tokens
    assert all(end > start >= 0 for start, end in zip(run.starts, run.ends, strict=True))


@given(jobs=jobs_of(max_group_size=1), seats=st.integers(1, 4), num_replicas=st.integers(1, 4))
def test_no_replica_runs_out_of_work_while_the_queue_has_some(jobs, seats, num_replicas):
    replica = Replica(max_num_seqs=seats, kv_tokens=10_000)
    runs = run_queue([[job] for job in jobs], num_replicas, replica, COST)
    assert sorted(job for run in runs for job in run.jobs) == sorted(jobs)
    last_start = max(start for run in runs for start in run.starts)
    assert last_start <= min(run.makespan for run in runs) + 1e-9 or len(jobs) < num_replicas
    if num_replicas == 1:
        jobs = [job._replace(priority=0) for job in jobs]
        (alone,) = run_queue([[job] for job in jobs], 1, replica, COST)
        assert alone.ends == pytest.approx(run_replica(jobs, replica, COST).ends)


def test_a_job_that_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit in a cache of 10"):
        run_replica([Job(0, 5, 7)], Replica(max_num_seqs=1, kv_tokens=10), COST)


# ---- closed forms


def alone_seconds(job: Job, cost: CostModel = COST) -> float:
    """One completion by itself, token by token."""
    prompt = cost.fixed_seconds(1) + cost.per_prompt_token_seconds * job.num_prompt_tokens
    return prompt + sum(
        cost.fixed_seconds(1) + cost.per_context_token_seconds * (job.num_prompt_tokens + k)
        for k in range(1, job.num_tokens)
    )


LENGTHS = [7, 1, 30, 12, 3]
JOBS = [Job(i, 4 + i, length) for i, length in enumerate(LENGTHS)]


def test_one_slot_takes_the_sum():
    run = run_replica(JOBS, Replica(max_num_seqs=1, kv_tokens=100), COST)
    assert run.makespan == pytest.approx(sum(alone_seconds(job) for job in JOBS))
    assert run.num_steps == sum(LENGTHS)


def test_slots_for_all_take_as_many_steps_as_the_longest_has_tokens():
    run = run_replica(JOBS, ROOMY, COST)
    assert run.num_steps == max(LENGTHS)
    base = replace(COST, **dict.fromkeys(FREE, 0.0))
    assert run_replica(JOBS, ROOMY, base).makespan == pytest.approx(max(LENGTHS) * 1.0)


FREE = (
    "expert_seconds",
    "per_sequence_seconds",
    "per_context_token_seconds",
    "per_prompt_token_seconds",
)


def test_equal_lengths_take_waves_of_equal_steps():
    jobs = [Job(i, 3, 10) for i in range(24)]
    replica = Replica(max_num_seqs=8, kv_tokens=10**6)
    continuous, waves = run_replica(jobs, replica, COST), run_waves(jobs, replica, COST)
    assert continuous.makespan == pytest.approx(waves.makespan)
    context = sum(8 * (3 + k) for k in range(1, 10))
    one = 10 * COST.fixed_seconds(8) + 0.01 * context + 0.03 * 24
    assert waves.makespan == pytest.approx(3 * one)
    assert waves.num_steps == continuous.num_steps == 30


def test_a_replica_in_bfloat16_is_slower_and_holds_less():
    (fp8, fp8_tokens), (bf16, bf16_tokens) = (
        assumed_cost(dtype, ReplicaAssumptions()) for dtype in ("fp8", "bfloat16")
    )
    assert 1.3 < bf16.fixed_seconds(128) / fp8.fixed_seconds(128) < 2
    assert bf16.per_context_token_seconds == pytest.approx(2 * fp8.per_context_token_seconds)
    assert fp8_tokens > 2 * bf16_tokens > 0


# ---- verifiers


@pytest.mark.parametrize(
    ("num_workers", "overlapped", "expected"),
    [(1, True, 13.0), (1, False, 19.0), (3, True, 13.0), (3, False, 13.0)],
)
def test_verdicts_of_known_times(num_workers, overlapped, expected):
    # Ends at 1, 2 and 10; three seconds each.
    assert scored_seconds([1, 10, 2], [3, 3, 3], num_workers, overlapped=overlapped) == expected


@given(
    pairs=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=20),
    num_workers=st.integers(1, 5),
)
def test_overlap_never_loses_and_never_beats_the_verifiers_work(pairs, num_workers):
    ends, seconds = zip(*pairs, strict=True)
    overlapped, serial = (
        scored_seconds(ends, seconds, num_workers, overlapped=how) for how in (True, False)
    )
    last = max(ends)
    assert last <= overlapped <= serial + 1e-9
    assert serial >= last + sum(seconds) / num_workers - 1e-9
    assert serial <= last + sum(seconds) / num_workers + max(seconds) + 1e-9


# ---- policies


ROOM_FOR_SMALL = Replica(max_num_seqs=SMALL.num_slots, kv_tokens=20_000)


@pytest.mark.parametrize("name", POLICIES)
def test_every_completion_is_written_once(name):
    work = draw_workload(SMALL, LengthLaw(), 0)
    runs = POLICIES[name](work, ROOM_FOR_SMALL, COST)
    assert len(runs) == SMALL.num_replicas
    written = sorted((job.group, job.num_tokens) for run in runs for job in run.jobs)
    assert written == sorted((p, n) for p, row in enumerate(work.lengths.tolist()) for n in row)
    assert all(end > start >= 0 for r in runs for start, end in zip(r.starts, r.ends, strict=True))


FEW_PROMPT_TOKENS = LengthLaw(prompt_median=8)
"""Else most of the time would be that of prompts, which the oracle computes most often."""


def makespan(name: str, seed: int) -> float:
    work = draw_workload(SMALL, FEW_PROMPT_TOKENS, seed)
    return max(run.makespan for run in POLICIES[name](work, ROOM_FOR_SMALL, COST))


def test_nothing_beats_the_ideal_and_knowing_more_is_better():
    seeds = range(8)
    times = {name: np.array([makespan(name, seed) for seed in seeds]) for name in POLICIES}
    works = [draw_workload(SMALL, FEW_PROMPT_TOKENS, seed) for seed in seeds]
    ideal = np.array([ideal_seconds(work, COST) for work in works])
    assert all((ideal <= of_seeds * (1 + 1e-9)).all() for of_seeds in times.values())
    assert all((of_seeds <= times["static waves"]).all() for of_seeds in times.values())
    means = {name: of_seeds.mean() for name, of_seeds in times.items()}
    assert means["oracle longest-first"] < means["predicted longest-first"] < means["even split"]
    assert means["even split"] < means["whole groups"]


def test_the_same_seed_gives_the_same_work_and_another_does_not():
    first, again, other = (draw_workload(SCENARIOS[0], LengthLaw(), seed) for seed in (3, 3, 4))
    for field in ("lengths", "predicted", "order", "prompt_tokens"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
        assert not np.array_equal(getattr(first, field), getattr(other, field))


def test_lengths_follow_the_law():
    law, scenario = LengthLaw(), SCENARIOS[2]
    logs = np.concatenate([np.log(draw_workload(scenario, law, seed).lengths) for seed in range(8)])
    assert np.mean(logs == math.log(scenario.max_tokens)) == pytest.approx(0.02, abs=0.01)
    within = logs.var(axis=1, ddof=1).mean() / scenario.sigma**2
    assert within == pytest.approx(1 - law.prompt_share, abs=0.03)


# ---- the command


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/simulate.py"), *words], capture_output=True, text=True
    )


def test_the_command_prints_what_its_json_says(tmp_path: Path):
    done = simulate(
        *("--validate", "False", "--scenarios", "8k-wide", "--num-seeds", "1"),
        *("--json", "--plots", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    policies = figures["scenarios"]["8k-wide"]["policies"]
    even, predicted = (
        policies[name][0]["written"] for name in ("even split", "predicted longest-first")
    )
    assert figures["worst_ratio"] == pytest.approx(even / predicted)
    assert f"{even / predicted:.3f}" in done.stdout
    parts = list(figures["composite"]["8k-wide"].values())
    assert parts == sorted(parts), "each part adds to those before it"
    for name in ("simulate_makespans.png", "simulate_slots.png"):
        assert 5_000 < (tmp_path / name).stat().st_size < 150_000


def test_a_measured_cost_is_read_from_the_last_line(tmp_path: Path):
    path = tmp_path / "scale.json"
    path.write_text("a table\n" + json.dumps({"cost_model": vars(COST)}) + "\n")
    assert read_cost(path) == COST
    path.write_text("no json\n")
    with pytest.raises(UserError, match="does not end with the JSON line"):
        read_cost(path)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--scenarios", "none"], "no scenario 'none'"), (["--cost", "absent.json"], "absent.json")],
)
def test_mistakes_are_exit_code_2_in_one_line(words, named):
    done = simulate("--validate", "False", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
