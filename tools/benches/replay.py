"""What Router Replay costs, as shares of one RL step: recording routes, and replaying them.

The effect is small, so neither is a difference of two totals. Recording: the same batch is written
again and again, its decoding steps in turn with a runner that records and one that does not, the
other way round the next time; what a step costs more is taken step by step, and summed. Replaying:
each microbatch's forward and backward pass with the recorded routes and with live ones, in turn.
To these are added reading the routes for the metrics, and packing and checking them. The step that
they are shares of is that of `bench step`, with everything on. CPU seconds, one thread, best of n.

`ratio` is a step with neither over a step with both; its limit allows 2 % for recording and 3 % for
replaying, which are also given singly.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benches.batch import MOST_TOKENS, Lengths, draw_batch, spec_named
from benches.step import LOSS, CompassStep
from rich.console import Console
from rich.table import Table
from torch import Tensor

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.errors import UserError
from compass.generate.attention.kv_cache import KVCache
from compass.generate.generator import Generator
from compass.generate.model_runner import ModelRunner
from compass.generate.sequence import Request
from compass.models.context import ForwardContext
from compass.models.policy import Policy
from compass.rl.advantage import AdvantageConfig, group_advantages
from compass.rl.pack import PackConfig, PackedBatch, pack
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.report import load_metrics
from compass.train.policy_loss import PolicyLossConfig
from compass.types import Microbatch, RolloutGroup

RECORDING_LIMIT, REPLAY_LIMIT = 0.02, 0.03
"""Largest shares of a step that count as good enough."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py replay`."""

    json: bool = False
    """End with one line of JSON."""
    lengths: Lengths = "tail"
    """`tail`: lognormal with sigma 1 and median 40, at most 256 tokens; `uniform`: 64 each."""
    spec: str = "debug-4m"
    """Named model with experts; random weights."""
    num_prompts: int = 16
    """Prompts of 32 tokens."""
    group_size: int = 8
    """Completions of each."""
    max_tokens_per_microbatch: int = 2048
    """Small, so that there are many pairs of passes."""
    repeats: int = 5
    """Counted rounds, after one that is not."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats={self.repeats} must be at least 1")


class UnrecordedModel:
    """A model whose routers are not told where to write."""

    def __init__(self, model: Policy) -> None:
        self._model = model
        self.spec = model.spec

    def __call__(
        self, token_ids_T: Tensor, positions_T: Tensor, context: ForwardContext, rows_R: Tensor
    ) -> Any:
        """As the model's own."""
        return self._model(token_ids_T, positions_T, replace(context, routing=None), rows_R)


class UnrecordedCache:
    """A KV cache that takes no routes and gives back blank ones."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def write_routes(self, slots_T: Tensor, routes_TLK: Tensor) -> None:
        """Nothing."""

    def read_routes(self, block_tables: list[list[int]], num_tokens: list[int]) -> list[Tensor]:
        """Of the right shapes."""
        shape = self._cache.routes.shape[1:]
        return [torch.empty((n, *shape), dtype=self._cache.route_dtype) for n in num_tokens]


class EveryOtherStep:
    """A closed source of requests: it is asked before every step, and then has the generator record
    or not, in turn."""

    is_open = False

    def __init__(self, generator: Generator, *, record_first: bool) -> None:
        recording = generator.runner
        model: Any = UnrecordedModel(recording.model)
        cache: Any = UnrecordedCache(recording.cache)
        device = recording.device
        silent = ModelRunner(model, cache, device, backend=recording.backend)
        self._generator = generator
        self._runners = (recording, silent)
        self._record_first = record_first
        self._readings: list[float] = []

    def take(self) -> list[Request]:
        """Nothing: the batch is complete from the start."""
        self._readings.append(time.process_time())
        self._generator.runner = self._runners[not self.records(len(self._readings) - 1)]
        return []

    def wait(self, seconds: float) -> None:
        """Never called on a closed source."""
        raise AssertionError

    def records(self, step: int) -> bool:
        """Whether a step, counted from 0, records."""
        return (step % 2 == 0) == self._record_first

    def close(self) -> list[float]:
        """Let the generator record again; seconds of each step."""
        self._generator.runner = self._runners[0]
        pairs = zip(self._readings, self._readings[1:], strict=False)
        return [end - start for start, end in pairs]


class Paired:
    """Seconds of the same pieces of work, with something and without."""

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[list[float], list[float]]] = {}

    def add(self, piece: int, seconds: float, *, with_it: bool) -> None:
        """One more reading."""
        self._seconds.setdefault(piece, ([], []))[not with_it].append(seconds)

    @property
    def cost(self) -> float:
        """Sum over pieces of best with - best without: what disturbs a reading only adds to it."""
        return sum(min(with_it) - min(without) for with_it, without in self._seconds.values())


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    spec = spec_named(cfg.spec)
    if not spec.num_experts:
        raise UserError(f"spec={cfg.spec!r} has no experts, so no routes")
    torch.set_num_threads(1)
    batch = draw_batch(
        cfg.lengths,
        vocab_size=spec.vocab_size,
        num_prompts=cfg.num_prompts,
        group_size=cfg.group_size,
    )
    topology = init_topology(ParallelConfig(device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        compass = CompassStep(spec, batch, topology, Path(folder))
        for _ in range(cfg.repeats + 1):
            compass.step()
        compass.logger.close()
    step_seconds = min(parts["step"] for parts in compass.parts[1:])
    written = RankRollouts(0)
    groups = compass.roll_out(written)
    costs = {
        "recording in the generator": recording_cost(compass, written, cfg.repeats),
        "routes in the metrics": alternate(
            cfg.repeats, lambda: load_metrics(written, spec, topology), lambda: None
        ),
        "packing routes": alternate(
            cfg.repeats,
            lambda: pack_batch(compass, groups, written, cfg, replay=True),
            lambda: pack_batch(compass, groups, written, cfg, replay=False),
        ),
        "replay in forward and backward": replay_cost(
            compass, pack_batch(compass, groups, written, cfg, replay=True), cfg.repeats
        ),
    }
    dist.destroy_process_group()
    choices = sum(tokens.routed_experts.numel() for tokens in written)
    num_bytes = sum(tokens.routed_experts.nbytes for tokens in written)
    return report(cfg, costs, step_seconds, bytes_per_choice=num_bytes / choices)


def recording_cost(compass: CompassStep, written: RankRollouts, repeats: int) -> float:
    """CPU seconds of recording in a whole rollout. The tokens must be the same without."""
    paired = Paired()
    lengths = [len(tokens.token_ids) for tokens in written]
    for repeat in range(2 * repeats + 2):
        source = EveryOtherStep(compass.generator, record_first=repeat % 2 == 0)
        requests = compass.batch.requests(1.0)
        compass.generator.load_weights(compass.policy, 0)
        completions = list(
            compass.generator.generate(requests, seed=len(compass.parts), source=source)
        )
        seconds = source.close()
        # In the order in which they ended.
        tokens = [[*c.prompt_token_ids, *c.token_ids] for c in completions]
        assert [len(ids) for ids in tokens] == lengths
        assert tokens == [of_rollout.token_ids.tolist() for of_rollout in written]
        for step, spent in enumerate(seconds):
            if repeat >= 2:
                paired.add(step, spent, with_it=source.records(step))
    return paired.cost


def replay_cost(compass: CompassStep, batch: PackedBatch, repeats: int) -> float:
    """CPU seconds of forcing routes and counting flips in one pass over every microbatch."""
    [minibatch] = batch.minibatches
    loss = PolicyLossConfig().choose(LOSS, max_completion_tokens=MOST_TOKENS)([], compass.topology)

    def spend(microbatch: Microbatch) -> float:
        started = time.process_time()
        compass.trainer.forward_backward(
            microbatch,
            loss,
            num_rollouts=minibatch.num_rollouts,
            num_tokens=minibatch.num_tokens,
        )
        spent = time.process_time() - started
        compass.trainer.optimizer.zero_grad(set_to_none=False)
        return spent

    paired = Paired()
    for repeat in range(repeats + 1):
        for piece, microbatch in enumerate(minibatch.microbatches):
            live = replace(microbatch, routed_experts=None)
            order = (True, False) if (repeat + piece) % 2 else (False, True)
            for with_it in order:
                spent = spend(microbatch if with_it else live)
                if repeat:
                    paired.add(piece, spent, with_it=with_it)
    return paired.cost


def alternate(repeats: int, with_it: Callable[[], object], without: Callable[[], object]) -> float:
    """What `with_it` costs more than `without`, in CPU seconds."""
    paired = Paired()
    for repeat in range(repeats + 1):
        for kind, work in ((True, with_it), (False, without)):
            started = time.process_time()
            work()
            if repeat:
                paired.add(0, time.process_time() - started, with_it=kind)
    return paired.cost


def pack_batch(
    compass: CompassStep,
    groups: Sequence[RolloutGroup],
    written: RankRollouts,
    cfg: Config,
    *,
    replay: bool,
) -> PackedBatch:
    """The update's batch, with routes and without."""
    rewards = [compass.stages.rewards(group) for group in groups]
    return pack(
        groups,
        group_advantages(groups, rewards, AdvantageConfig()),
        written,
        compass.policy.spec,
        compass.topology,
        PackConfig(max_tokens_per_microbatch=cfg.max_tokens_per_microbatch),
        numbers=range(len(groups)),
        replay=replay,
    )


def report(
    cfg: Config, costs: Mapping[str, float], step_seconds: float, *, bytes_per_choice: float
) -> Mapping[str, Any] | None:
    """Print what was measured; the figures, if JSON is wanted."""
    generator, metrics, packing, passes = costs.values()
    recording, replay = (generator + metrics) / step_seconds, (packing + passes) / step_seconds
    table = Table(title=f"{cfg.spec}, {cfg.lengths} lengths, a step of {step_seconds:.2f} CPU s")
    table.add_column("cost")
    for column in ("CPU ms", "of a step"):
        table.add_column(column, justify="right")
    for name, seconds in costs.items():
        table.add_row(name, f"{seconds * 1e3:.1f}", f"{seconds / step_seconds:.2%}")
    console = Console()
    console.print(table)
    for name, share, limit in (
        ("recording", recording, RECORDING_LIMIT),
        ("replay", replay, REPLAY_LIMIT),
    ):
        verdict = "met" if share <= limit else "MISSED"
        console.print(f"{name} {share:.2%} of a step (limit {limit:.0%}: {verdict})")
    console.print(f"{bytes_per_choice:g} bytes for each choice of an expert")
    if not cfg.json:
        return None
    return {
        "ratio": 1 - recording - replay,
        "limit": 1 - RECORDING_LIMIT - REPLAY_LIMIT,
        "recording_share": recording,
        "recording_limit": RECORDING_LIMIT,
        "replay_share": replay,
        "replay_limit": REPLAY_LIMIT,
        "bytes_per_choice": bytes_per_choice,
        "step_cpu_seconds": step_seconds,
        "cpu_seconds": costs,
    }
