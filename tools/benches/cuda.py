"""Decoding and training on a CUDA device: kernels, tokens/s, graphs, FP8, refresh, a train step.

    make gpu
    python tools/bench.py cuda --out docs/results/cuda.json --deadline-seconds 240

By default on random weights of a 1.9B-parameter MoE: 24 layers, width 1024, 64 experts of which 8
are chosen. Attention kernels must agree with `gather` before they are timed. `ratio` is the time of
`gather` over that of our kernel at the largest size. It stops by itself: no measurement begins
after `--deadline-seconds`, and what was not reached is missing from the results, which are written
after each part. `--device cpu --spec debug --batches 1 2 --contexts 8 16` runs all of it, slowly,
where there is no such device, and measures nothing of interest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from benches.batch import spec_named
from benches.cuda_measurements import (
    VARIANTS,
    Deadline,
    measure_decoding,
    measure_device,
    measure_kernels,
    measure_refresh,
    measure_training,
    random_policy,
)
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.errors import UserError
from compass.machine.devices import this_machine
from compass.machine.versions import installed_versions
from compass.models.config import DTYPES
from compass.models.specs import ModelSpec

MOE_1_9B = ModelSpec(
    vocab_size=32_768,
    hidden_size=1024,
    num_layers=24,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    intermediate_size=3072,
    moe_intermediate_size=384,
    num_experts=64,
    top_k=8,
    tie_word_embeddings=True,
)
LIMIT = 1.0
"""Our kernel must not be slower than gathering."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py cuda`."""

    json: bool = False
    """End with one line of JSON."""
    device: Literal["cuda", "cpu"] = "cuda"
    """`cpu` runs every part where there is no CUDA device, to see that it runs."""
    spec: str = "1.9b-moe"
    """`1.9b-moe`, or a named model; random weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Completions decoded at once."""
    contexts: tuple[int, ...] = (512, 4096)
    """Prompt lengths. All batches run at the first, the last batch at all."""
    layers: int | None = None
    """Layers of the model, where the whole would not fit; by default its own."""
    train_sequences: tuple[int, ...] = (4, 12)
    """Sequences of a train step, one microbatch."""
    train_tokens: int = 2048
    """Tokens of each."""
    deadline_seconds: float = 240.0
    """No measurement begins later than this after the start."""
    out: Path | None = None
    """Where results are written as JSON; None: nowhere."""

    def __post_init__(self) -> None:
        if not self.batches or not self.contexts or min(*self.batches, *self.contexts) < 1:
            raise UserError(
                f"batches={self.batches} and contexts={self.contexts} must be numbers from 1 up"
            )


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print tables, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    deadline = Deadline(cfg.deadline_seconds)
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "bench cuda: torch sees no CUDA device; run it where there is one, or give "
            "--device cpu to see that it runs"
        )
    spec = MOE_1_9B if cfg.spec == "1.9b-moe" else spec_named(cfg.spec)
    spec = replace(spec, num_layers=cfg.layers or spec.num_layers)
    topology = init_topology(ParallelConfig(device=cfg.device))
    policy = random_policy(spec, cfg.dtype, topology)
    sizes = [(batch, cfg.contexts[0]) for batch in cfg.batches]
    sizes += [(cfg.batches[-1], context) for context in cfg.contexts[1:]]
    device, dtype = topology.device, DTYPES[cfg.dtype]
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "driver": this_machine().driver,
        "spec": cfg.spec,
        "sizes": asdict(spec),
        "parameters": spec.num_params.total,
        "dtype": cfg.dtype,
        "versions": {"cuda": torch.version.cuda or "none"}
        | installed_versions("torch", "triton", "torchtitan", "flash-attn"),
        "peaks": [],
        "kernels": [],
        "training": [],
        "refresh": [],
        "decoding": [],
    }
    parts: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("peaks", lambda: measure_device(device, deadline)),
        ("kernels", lambda: measure_kernels(spec, sizes, dtype, device, deadline)),
    ]
    for num_sequences in cfg.train_sequences:
        step = partial(
            measure_training, policy, topology, num_sequences, cfg.train_tokens, deadline
        )
        parts.append(("training", step))
    for variant in ("direct", "fp8"):
        parts.append(("refresh", partial(measure_refresh, policy, topology, variant, deadline)))
    for variant in VARIANTS:  # those with graphs, which may fail to be recorded, come last
        parts.append(
            (
                "decoding",
                partial(measure_decoding, policy, topology, variant, sizes, deadline),
            )
        )
    for name, measure in parts:
        figures[name] += (rows := measure())
        _print(name, rows)
        _write(cfg.out, figures)
    dist.destroy_process_group()
    if not figures["kernels"]:
        raise UserError(
            f"deadline_seconds={cfg.deadline_seconds} was over before anything was measured"
        )
    if not cfg.json:
        return None
    return {"ratio": _ratio(figures["kernels"]), "limit": LIMIT, **figures}


def _ratio(kernels: Sequence[Mapping[str, Any]]) -> float:
    """Over `gather`, at the largest size that was reached, of `triton` where it can run."""
    rows = [row for row in kernels if row["backend"] == "triton"] or list(kernels)
    return rows[-1]["ratio_gather"]


def _write(path: Path | None, figures: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


def _print(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console(width=120)
    measured = [row for row in rows if "refused" not in row]
    table = Table(title=name)
    for column in measured[0] if measured else ():
        table.add_column(column.replace("_", " "), justify="right")
    for row in measured:
        table.add_row(*map(_cell, row.values()))
    if measured:
        console.print(table)
    for row in rows:
        if "refused" in row:
            console.print(f"{row['variant']}: {row['refused']}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
