"""The simulator against a real run: the gate before anything else is believed.

A cost model is fitted from steps of one kind (batches of equal length, as `tools/bench.py scale`
times them); then long-tailed requests, four times as many as there are seats, are written for real
and in the simulation, in order of arrival and longest first. On CPU, one thread, CPU
seconds. All of it is done again and again, interleaved, and since every repeat takes the very same
steps, each step counts with its least time: what disturbs a reading only adds to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from benches.cost_model import CostModel, fit_cost_model
from benches.scale import StepClock, decode_point, missed_share, prompt_point, time_steps
from simulation.jobs import Job, Replica
from simulation.replica import run_replica

from compass.distributed import ParallelConfig, init_topology
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.models.specs import SPECS
from compass.types import SamplingParams

NUM_SEATS = 32
NUM_REQUESTS = 128
PROMPT_TOKENS = 32
MAX_TOKENS = 256
BATCHES = (1, 2, 4, 8, 16, NUM_SEATS)
CONTEXTS = (PROMPT_TOKENS, 256)
NUM_STEPS = 12
NUM_REPEATS = 5
MAX_ERROR = 0.10
"""Of the makespan, relative."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One order in which the requests were written."""

    name: str
    real_seconds: float
    simulated_seconds: float

    @property
    def error(self) -> float:
        """(Simulated - real) / real."""
        return self.simulated_seconds / self.real_seconds - 1


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Built by `validate`."""

    cost: CostModel
    traces: tuple[Trace, ...]

    @property
    def is_good(self) -> bool:
        """No makespan is off by more than `MAX_ERROR`."""
        return all(abs(trace.error) <= MAX_ERROR for trace in self.traces)


ORDERS: Mapping[str, bool] = MappingProxyType({"arrival": False, "longest first": True})
"""Name of a trace: whether the longest come first."""


def validate() -> Validation:
    """Measure, write, simulate, compare. Starts and ends a process group of one."""
    torch.set_num_threads(1)
    topology = init_topology(ParallelConfig(device="cpu"))
    policy = build_policy(
        SPECS["debug-4m"], topology, PolicyConfig(), lambda policy: init_policy(policy, 0)
    )
    block_size = GeneratorConfig().block_size
    max_tokens_per_step = NUM_SEATS * max(CONTEXTS)  # all prompts

    def generator() -> Generator:
        num_blocks = NUM_REQUESTS * -(-(max(CONTEXTS) + MAX_TOKENS) // block_size)
        config = GeneratorConfig(
            max_num_seqs=NUM_SEATS,
            max_tokens_per_step=max_tokens_per_step,
            num_blocks=num_blocks,
        )
        return Generator(policy, config, topology)

    scale = generator()
    writers = {name: generator() for name in ORDERS}
    settings = [(batch, context) for context in CONTEXTS for batch in BATCHES]
    scaled: dict[tuple[int, int], list[list[float]]] = {setting: [] for setting in settings}
    written: dict[str, list[list[float]]] = {name: [] for name in ORDERS}
    for _ in range(NUM_REPEATS):
        for setting, runs in scaled.items():
            runs.append(time_steps(scale, *setting, NUM_STEPS, group_size=1))
        for name, longest_first in ORDERS.items():
            written[name].append(_write(writers[name], longest_first))
    torch.distributed.destroy_process_group()
    points = []
    for setting, runs in scaled.items():
        prompt, *decodes = _least(runs)
        points.append(decode_point(*setting, NUM_STEPS, statistics.median(decodes)))
        points.append(prompt_point(*setting, prompt, group_size=1))
    cost = fit_cost_model(points, missed_share=missed_share(policy.spec))
    traces = tuple(
        Trace(
            name=name,
            real_seconds=sum(_least(written[name])),
            simulated_seconds=_simulate(cost, longest_first, max_tokens_per_step),
        )
        for name, longest_first in ORDERS.items()
    )
    return Validation(cost=cost, traces=traces)


def _lengths() -> Sequence[int]:
    """Lognormal with sigma 1 and median 40, at most `MAX_TOKENS`."""
    draw = torch.Generator().manual_seed(0)
    return (
        (torch.randn(NUM_REQUESTS, generator=draw).exp() * 40).clamp(1, MAX_TOKENS).int().tolist()
    )


def _least(runs: Sequence[Sequence[float]]) -> list[float]:
    """Of each step, over the repeats."""
    return [min(of_step) for of_step in zip(*runs, strict=True)]


def _write(generator: Generator, longest_first: bool) -> list[float]:
    """CPU seconds of each step of the real generator."""
    draw = torch.Generator().manual_seed(1)
    vocab_size = generator.view.model.spec.vocab_size
    requests = [
        Request(
            prompt_id=f"{i}",
            prompt_token_ids=torch.randint(vocab_size, (PROMPT_TOKENS,), generator=draw).tolist(),
            num_samples=1,
            sampling=SamplingParams(max_completion_tokens=length),
            priority=-length if longest_first else 0,
        )
        for i, length in enumerate(_lengths())
    ]
    clock = StepClock(generator.topology.device)
    completions = generator.generate(requests, seed=0, source=clock)
    assert sum(len(c.token_ids) for c in completions) == sum(_lengths())
    return clock.step_seconds


def _simulate(cost: CostModel, longest_first: bool, max_tokens_per_step: int) -> float:
    jobs = [
        Job(
            group=i,
            num_prompt_tokens=PROMPT_TOKENS,
            num_tokens=length,
            priority=-length if longest_first else 0,
        )
        for i, length in enumerate(_lengths())
    ]
    replica = Replica(
        max_num_seqs=NUM_SEATS,
        kv_tokens=NUM_REQUESTS * (max(CONTEXTS) + MAX_TOKENS),
        max_tokens_per_step=max_tokens_per_step,
    )
    return run_replica(jobs, replica, cost).makespan
