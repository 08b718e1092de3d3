"""Generation against transformers, on the same weights, prompts and imposed lengths, on CPU.

Each completion has a length of its own, as in RL: drawn from a lognormal (`tail`) or all alike
(`uniform`). Peers: `generate`, one static batch that runs until its longest completion ends, and
transformers' continuous batching. One thread, CPU seconds, sides interleaved, medians.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.errors import UserError
from compass.generate.generator import Generator, GeneratorConfig
from compass.generate.sequence import Request
from compass.models.hf import save_hf
from compass.models.parallel import PolicyConfig, build_policy, init_policy
from compass.models.specs import SPECS
from compass.types import SamplingParams

LIMITS = {"tail": 4.0, "uniform": 1.2}
"""Least ratio to static batches that counts as good enough."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py gen`."""

    json: bool = False
    """End with one line of JSON."""
    lengths: Literal["tail", "uniform"] = "tail"
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
    if cfg.spec not in SPECS:
        raise UserError(f"spec={cfg.spec!r} is not one of {', '.join(SPECS)}")
    torch.set_num_threads(1)
    work = Workload(cfg)
    sides = {
        "compass": work.compass,
        "transformers generate": work.static,
        "transformers continuous batching": work.continuous,
    }
    check_greedy(work)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(cfg.repeats + 1):
        for name, side in sides.items():
            spent = _cpu_seconds(side)
            if repeat:
                seconds[name].append(spent)
    dist.destroy_process_group()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: medians[name] / medians["compass"] for name in sides}
    _print(cfg, work.num_tokens, medians, ratios)
    if not cfg.json:
        return None
    return {
        "lengths": cfg.lengths,
        "ratio": ratios["transformers generate"],
        "limit": LIMITS[cfg.lengths],
        "ratio_continuous_batching": ratios["transformers continuous batching"],
        "cpu_seconds": seconds,
        "completion_tokens": work.num_tokens,
        "transformers": importlib.metadata.version("transformers"),
    }


class Workload:
    """The same requests for every side, each of which has the same weights."""

    def __init__(self, cfg: Config) -> None:
        import transformers

        spec = SPECS[cfg.spec]
        draw = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(spec.vocab_size, (cfg.num_prompts, 32), generator=draw)
        shape = (cfg.num_prompts, cfg.group_size)
        tail = (torch.randn(shape, generator=draw).exp() * 40).clamp(1, 256).int()
        self.lengths = tail if cfg.lengths == "tail" else torch.full(shape, 64)
        self.num_tokens = int(self.lengths.sum())
        topology = init_topology(ParallelConfig(device="cpu"))
        self.policy = build_policy(spec, topology, PolicyConfig(), lambda p: init_policy(p, 0))
        with tempfile.TemporaryDirectory() as folder:
            save_hf(self.policy, Path(folder) / "model", topology=topology)
            self.peer: Any = transformers.AutoModelForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=torch.float32
            )
        self.peer.generation_config.eos_token_id = None
        self.generator = Generator(
            self.policy,
            GeneratorConfig(max_num_seqs=shape[0] * shape[1], kv_cache_gb=0.5),
            topology,
        )

    def compass(self) -> None:
        """Ours: what recording routes and log-probabilities costs included."""
        self.generator.load_weights(self.policy, 0)
        written = sum(len(c.token_ids) for c in self.generator.generate(self.requests(1.0), seed=0))
        assert written == self.num_tokens, f"{written} tokens instead of {self.num_tokens}"

    def static(self) -> None:
        """One batch of everything, until the longest ends; no token is scored or recorded."""
        ids = self.prompts.repeat_interleave(self.lengths.shape[1], dim=0)
        longest = int(self.lengths.max())
        with torch.no_grad():
            out = self.peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=longest,
                pad_token_id=0,
            )
        assert out.shape[1] == 32 + longest

    def continuous(self) -> None:
        """Every request with its own limit."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        manager = self.peer.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=True, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(),
        )
        manager.start()
        for prompt, lengths in zip(self.prompts.tolist(), self.lengths.tolist(), strict=True):
            for length in lengths:
                manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
        results = [manager.get_result(timeout=300) for _ in range(self.lengths.numel())]
        manager.stop(block=True)
        assert sum(len(r.generated_tokens) for r in results) == self.num_tokens

    def requests(self, temperature: float) -> list[Request]:
        """One per completion, since each has its own length: no prompt is shared."""
        return [
            Request(
                prompt_id=f"{i}",
                prompt_token_ids=prompt,
                num_samples=1,
                first_sample=j,
                sampling=SamplingParams(max_completion_tokens=length, temperature=temperature),
            )
            for i, prompt in enumerate(self.prompts.tolist())
            for j, length in enumerate(self.lengths[i].tolist())
        ]


def check_greedy(work: Workload) -> None:
    """The gate: on the same weights both sides write the same greedy tokens."""
    requests = [r for r in work.requests(0.0) if r.first_sample == 0]
    mine = {c.prompt_id: list(c.token_ids) for c in work.generator.generate(requests, seed=0)}
    with torch.no_grad():
        out = work.peer.generate(
            work.prompts,
            attention_mask=torch.ones_like(work.prompts),
            do_sample=False,
            max_new_tokens=int(work.lengths[:, 0].max()),
            pad_token_id=0,
        )
    for i, row in enumerate(out[:, 32:].tolist()):
        expected = row[: len(mine[f"{i}"])]
        assert mine[f"{i}"] == expected, f"greedy tokens of prompt {i} differ"


def _cpu_seconds(side: Callable[[], None]) -> float:
    started = time.process_time()
    side()
    return time.process_time() - started


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
    good = ratios["transformers generate"] >= LIMITS[cfg.lengths]
    console.print(f"limit {LIMITS[cfg.lengths]:g} against generate: {'met' if good else 'MISSED'}")
