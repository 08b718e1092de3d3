"""Generation against transformers, on the same weights, prompts and imposed lengths, on CPU.

Each completion has a length of its own, as in RL: drawn from a lognormal (`tail`) or all alike
(`uniform`). Peers: `generate`, one static batch that runs until its longest completion ends, and
transformers' continuous batching. One thread, CPU seconds, sides interleaved, medians.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benches.batch import (
    PROMPT_TOKENS,
    Lengths,
    Seconds,
    by_clock,
    draw_batch,
    in_transformers,
    seconds_of,
    spec_named,
)
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy

LIMITS = {"tail": 4.0, "uniform": 1.2}
"""Least ratio to static batches that counts as good enough."""
CONTINUOUS_LIMITS = {"tail": 2.2, "uniform": 6.0}
"""The same for continuous batching."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py gen`."""

    json: bool = False
    """End with one line of JSON."""
    lengths: Lengths = "tail"
    """`tail`: lognormal with sigma 1 and median 40, at most 256 tokens; `uniform`: 64 each."""
    spec: str = "debug-4m"
    """Named model; random weights."""
    num_prompts: int = 16
    """Prompts of 32 tokens."""
    group_size: int = 8
    """Completions of each."""
    repeats: int = 3
    """Counted runs of each side, after one that is not."""


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    torch.set_num_threads(1)
    work = Workload(cfg)
    sides = {
        "compass": work.compass,
        "transformers generate": work.static,
        "transformers continuous batching": work.continuous,
    }
    check_greedy(work)
    runs: dict[str, list[Seconds]] = {name: [] for name in sides}
    for repeat in range(cfg.repeats + 1):
        for name, side in sides.items():
            spent = seconds_of(side)
            if repeat:
                runs[name].append(spent)
    dist.destroy_process_group()
    medians = {
        name: statistics.median(run.cpu for run in of_side) for name, of_side in runs.items()
    }
    ratios = {name: medians[name] / medians["compass"] for name in sides}
    _print(cfg, work.batch.num_tokens, medians, ratios)
    if not cfg.json:
        return None
    return {
        "lengths": cfg.lengths,
        "ratio": ratios["transformers generate"],
        "limit": LIMITS[cfg.lengths],
        "ratio_continuous_batching": ratios["transformers continuous batching"],
        "limit_continuous_batching": CONTINUOUS_LIMITS[cfg.lengths],
        "runs": {name: by_clock(of_side) for name, of_side in runs.items()},
        "completion_tokens": work.batch.num_tokens,
    }


class Workload:
    """The same requests for every side, each of which has the same weights."""

    def __init__(self, cfg: Config) -> None:
        spec = spec_named(cfg.spec)
        self.batch = draw_batch(
            cfg.lengths,
            vocab_size=spec.vocab_size,
            num_prompts=cfg.num_prompts,
            group_size=cfg.group_size,
        )
        topology = init_topology(ParallelConfig(device="cpu"))
        self.policy = build_policy(spec, topology, PolicyConfig(), lambda p: init_policy(p, 0))
        with tempfile.TemporaryDirectory() as folder:
            self.peer: Any = in_transformers(self.policy, topology, Path(folder) / "model")
        self.peer.generation_config.eos_token_id = None
        self.generator = Generator(
            self.policy,
            GeneratorConfig(max_num_seqs=cfg.num_prompts * cfg.group_size, kv_cache_gb=0.5),
            topology,
        )

    def compass(self) -> None:
        """Ours: what recording routes and log-probabilities costs included."""
        self.generator.load_weights(self.policy, 0)
        completions = self.generator.generate(self.batch.requests(1.0), seed=0)
        written = sum(len(c.token_ids) for c in completions)
        assert written == self.batch.num_tokens, f"{written}, not {self.batch.num_tokens} tokens"

    def static(self) -> None:
        """One batch of everything, until the longest ends; no token is scored or recorded."""
        ids = self.batch.prompts_PN.repeat_interleave(self.batch.lengths_PG.shape[1], dim=0)
        longest = int(self.batch.lengths_PG.max())
        with torch.no_grad():
            out = self.peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        assert out.shape[1] == PROMPT_TOKENS + longest

    def continuous(self) -> None:
        """Every request with its own limit."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        manager = self.peer.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=True, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(),
        )
        manager.start()
        requests = self.batch.requests(1.0)
        for request in requests:
            manager.add_request(
                list(request.prompt_token_ids),
                max_new_tokens=request.sampling.max_completion_tokens,
                eos_token_id=-1,
            )
        results = [manager.get_result(timeout=300) for _ in requests]
        manager.stop(block=True)
        assert sum(len(r.generated_tokens) for r in results) == self.batch.num_tokens


def check_greedy(work: Workload) -> None:
    """The gate: on the same weights both sides write the same greedy tokens."""
    requests = [r for r in work.batch.requests(0.0) if r.first_sample == 0]
    mine = {c.prompt_id: list(c.token_ids) for c in work.generator.generate(requests, seed=0)}
    prompts_PN = work.batch.prompts_PN
    with torch.no_grad():
        out = work.peer.generate(
            prompts_PN,
            attention_mask=torch.ones_like(prompts_PN),
            do_sample=False,
            max_new_tokens=int(work.batch.lengths_PG[:, 0].max()),
            pad_token_id=0,
        )
    for i, row in enumerate(out[:, PROMPT_TOKENS:].tolist()):
        expected = row[: len(mine[f"{i}"])]
        assert mine[f"{i}"] == expected, f"greedy tokens of prompt {i} differ"


def _print(
    cfg: Config, num_tokens: int, medians: Mapping[str, float], ratios: Mapping[str, float]
) -> None:
    table = Table(
        title=f"{cfg.spec}, {cfg.num_prompts} x {cfg.group_size} completions, {cfg.lengths} "
        f"lengths, {num_tokens:,} tokens, one thread"
    )
    table.add_column("generator")
    for column in ("CPU seconds", "tokens/s", "ratio to Compass"):
        table.add_column(column, justify="right")
    for name, spent in medians.items():
        table.add_row(name, f"{spent:.2f}", f"{num_tokens / spent:,.0f}", f"{ratios[name]:.2f}")
    console = Console()
    console.print(table)
    for peer, limits in (
        ("transformers generate", LIMITS),
        ("transformers continuous batching", CONTINUOUS_LIMITS),
    ):
        limit = limits[cfg.lengths]
        verdict = "met" if ratios[peer] >= limit else "MISSED"
        console.print(f"limit {limit:g} against {peer}: {verdict}")
