"""Decoding speed over batch sizes and context lengths, and the cost model that it fits.

Completions of one length are decoded together, in groups of eight that share a prompt, as in RL;
the generator is timed step by step, scheduling, sampling and routes included. `ratio` is tokens/s
of the largest batch over those of the smallest. CPU seconds on CPU, wall time on CUDA, where each
step's share of the roofline is printed too. Steps of all settings are interleaved; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from benches.batch import spec_named
from benches.cost_model import CostModel, StepPoint, fit_cost_model
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import DTYPES, PolicyConfig
from compass.models.flops import (
    attention_flops_per_pair,
    linear_flops_per_token,
    peak_tflops,
    vocabulary_flops_per_row,
)
from compass.models.parallel import build_policy, init_policy
from compass.models.specs import ModelSpec
from compass.types import SamplingParams

GROUP_SIZE = 8
LIMIT = 12.0
"""Least ratio of the largest batch to the smallest that counts as good enough."""
BANDWIDTHS_GB_S = (("H200", 4800.0), ("H100 PCIe", 2000.0), ("H100", 3350.0), ("A100", 2039.0))
"""Part of a CUDA device's name and its memory bandwidth (vendor's data sheets, largest variant)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py scale`."""

    json: bool = False
    """End with one line of JSON."""
    spec: str = "debug-4m"
    """Named model; random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and KV cache."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when there is one."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Completions decoded at once."""
    contexts: tuple[int, ...] = (32, 512)
    """Prompt lengths; several, or the cost of context cannot be told from that of a sequence."""
    num_steps: int = 16
    """Decoding steps timed in each run."""
    repeats: int = 3
    """Counted runs of each setting, after one that is not."""

    def __post_init__(self) -> None:
        if len(set(self.batches)) < 2 or min(self.batches) < 1:
            raise UserError(f"batches={self.batches} must be at least two sizes from 1 up")
        if len(set(self.contexts)) < 2 or min(self.contexts) < 1:
            raise UserError(f"contexts={self.contexts} must be at least two lengths from 1 up")
        for name in ("num_steps", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


class StepClock:
    """A closed source of requests that notes when it is asked, which is before every step."""

    is_open = False

    def __init__(self, device: torch.device) -> None:
        self._read = time.process_time if device.type == "cpu" else time.perf_counter
        self._readings: list[float] = []

    def take(self) -> list[Request]:
        """Nothing: the batch is complete from the start."""
        self._readings.append(self._read())
        return []

    def wait(self, seconds: float) -> None:
        """Never called on a closed source."""
        raise AssertionError

    @property
    def step_seconds(self) -> list[float]:
        """Of each step so far."""
        pairs = zip(self._readings, self._readings[1:], strict=False)
        return [end - start for start, end in pairs]


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    torch.set_num_threads(1)
    spec = spec_named(cfg.spec)
    generator = _generator(cfg, spec)
    settings = [(batch, context) for context in cfg.contexts for batch in cfg.batches]
    prompts: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    decodes: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for repeat in range(cfg.repeats + 1):
        for batch, context in settings:
            first, *rest = time_steps(generator, batch, context, cfg.num_steps)
            if repeat:
                prompts[batch, context].append(first)
                decodes[batch, context] += rest
    dist.destroy_process_group()
    decode_points = [
        decode_point(*setting, cfg.num_steps, statistics.median(decodes[setting]))
        for setting in settings
    ]
    prompt_points = [
        prompt_point(*setting, statistics.median(prompts[setting])) for setting in settings
    ]
    model = fit_cost_model([*decode_points, *prompt_points], missed_share=missed_share(spec))
    ratio = speed(decode_points[len(cfg.batches) - 1]) / speed(decode_points[0])
    roofline = _roofline_shares(cfg, spec, decode_points, generator.topology.device)
    _print(cfg, decode_points, model, roofline, ratio)
    if not cfg.json:
        return None
    return {
        "ratio": ratio,
        "limit": LIMIT,
        "spec": cfg.spec,
        "device": _device_name(generator.topology.device),
        "cost_model": asdict(model),
        "worst_relative_error": max(abs(model.relative_error(p)) for p in decode_points),
        "roofline_shares": roofline,
        "decode_points": [asdict(p) for p in decode_points],
        "prompt_points": [asdict(p) for p in prompt_points],
    }


def time_steps(
    generator: Generator, batch: int, context: int, num_steps: int, group_size: int = GROUP_SIZE
) -> list[float]:
    """Seconds of the step that feeds all prompts, then of each step that decodes all completions.

    Groups of `group_size` completions share a prompt of `context` tokens.
    """
    vocab_size = generator.view.model.spec.vocab_size
    draw = torch.Generator().manual_seed(batch * 10_007 + context)
    # The first token comes with the prompts, and the step of the last one is not counted:
    # completions are handed over in it.
    sampling = SamplingParams(max_completion_tokens=num_steps + 2)
    requests = [
        Request(
            prompt_id=f"{first}",
            prompt_token_ids=torch.randint(vocab_size, (context,), generator=draw).tolist(),
            num_samples=min(group_size, batch - first),
            sampling=sampling,
        )
        for first in range(0, batch, group_size)
    ]
    clock = StepClock(generator.topology.device)
    num_written = sum(1 for _ in generator.generate(requests, seed=0, source=clock))
    assert num_written == batch
    assert len(clock.step_seconds) == num_steps + 2, "a step for all prompts, then decodes alone"
    return clock.step_seconds[:-1]


def decode_point(batch: int, context: int, num_steps: int, seconds: float) -> StepPoint:
    """The median decoding step of `time_steps`: step i of 1..n meets context + i tokens."""
    return StepPoint(
        num_sequences=batch,
        num_context_tokens=round(batch * (context + (num_steps + 1) / 2)),
        num_prompt_tokens=0,
        seconds=seconds,
    )


def prompt_point(
    batch: int, context: int, seconds: float, group_size: int = GROUP_SIZE
) -> StepPoint:
    """The first step of `time_steps`: one prompt for each group."""
    return StepPoint(
        num_sequences=batch,
        num_context_tokens=0,
        num_prompt_tokens=context * -(-batch // group_size),
        seconds=seconds,
    )


def speed(point: StepPoint) -> float:
    """Tokens/s."""
    return point.num_sequences / point.seconds


def missed_share(spec: ModelSpec) -> float:
    """Chance that a token does not choose an expert, if routers are uniform; 1 without experts."""
    return 1 - spec.top_k / spec.num_experts if spec.num_experts else 1.0


def roofline_seconds(
    spec: ModelSpec, point: StepPoint, *, itemsize: int, tflops: float, gb_per_s: float
) -> float:
    """Least time of a decoding step: all its operations at peak, or its bytes at full bandwidth.

    Bytes: every weight outside the experts once, the experts that the batch is expected to choose
    if routers are uniform, and keys and values of the context.
    """
    expert = 3 * spec.hidden_size * spec.moe_intermediate_size
    shared = spec.num_params.total - spec.num_moe_layers * spec.num_experts * expert
    touched = 0.0
    if spec.num_experts:
        chosen = 1 - missed_share(spec) ** point.num_sequences
        touched = spec.num_moe_layers * spec.num_experts * chosen * expert
    if not spec.tie_word_embeddings:  # of the input embedding only the batch's rows are read
        shared -= spec.vocab_size * spec.hidden_size
    cached = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * point.num_context_tokens
    num_bytes = (shared + touched + cached) * itemsize
    per_token = linear_flops_per_token(spec) + vocabulary_flops_per_row(spec)
    flops = point.num_sequences * per_token
    flops += point.num_context_tokens * attention_flops_per_pair(spec)
    return max(flops / (tflops * 1e12), num_bytes / (gb_per_s * 1e9))


def _generator(cfg: Config, spec: ModelSpec) -> Generator:
    topology = init_topology(ParallelConfig(device=cfg.device))
    policy = build_policy(
        spec, topology, PolicyConfig(dtype=cfg.dtype), lambda policy: init_policy(policy, 0)
    )
    batch, tokens = max(cfg.batches), max(cfg.contexts) + cfg.num_steps + 2
    block_size = GeneratorConfig().block_size
    config = GeneratorConfig(
        max_num_seqs=batch,
        max_tokens_per_step=batch * max(cfg.contexts),  # all prompts in one step
        num_blocks=batch * (-(-tokens // block_size) + 2),  # admission keeps some back
    )
    return Generator(policy, config, topology)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _roofline_shares(
    cfg: Config, spec: ModelSpec, points: Sequence[StepPoint], device: torch.device
) -> list[float] | None:
    """Roofline time over measured time of each point; None where the device's peaks are unknown."""
    name = _device_name(device)
    tflops = peak_tflops(name)
    gb_per_s = next((rate for part, rate in BANDWIDTHS_GB_S if part in name), None)
    if tflops is None or gb_per_s is None:
        return None
    itemsize = DTYPES[cfg.dtype].itemsize
    return [
        roofline_seconds(spec, p, itemsize=itemsize, tflops=tflops, gb_per_s=gb_per_s) / p.seconds
        for p in points
    ]


def _print(
    cfg: Config,
    points: Sequence[StepPoint],
    model: CostModel,
    roofline: Sequence[float] | None,
    ratio: float,
) -> None:
    table = Table(title=f"decoding, {cfg.spec}, {cfg.dtype}, groups of {GROUP_SIZE}")
    for column in ("batch", "context tokens", "ms/step", "tokens/s", "model's error", "roofline"):
        table.add_column(column, justify="right")
    for i, point in enumerate(points):
        table.add_row(
            f"{point.num_sequences}",
            f"{point.num_context_tokens:,}",
            f"{point.seconds * 1e3:.2f}",
            f"{speed(point):,.0f}",
            f"{model.relative_error(point):+.0%}",
            "" if roofline is None else f"{roofline[i]:.1%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"step = {model.base_seconds * 1e3:.3f} ms + {model.expert_seconds * 1e3:.3f} ms x "
        f"(1 - {model.missed_share:g}^sequences) + {model.per_sequence_seconds * 1e6:.1f} us per "
        f"sequence + {model.per_context_token_seconds * 1e9:.1f} ns per context token + "
        f"{model.per_prompt_token_seconds * 1e6:.1f} us per prompt token"
    )
    verdict = "met" if ratio >= LIMIT else "MISSED"
    console.print(
        f"batch {max(cfg.batches)} over batch {min(cfg.batches)}: {ratio:.1f}x the "
        f"tokens/s (limit {LIMIT:g}: {verdict})"
    )
