"""What `tools/bench.py cuda` measures: the decode kernels, decoding, a train step.

Shape legend: B sequences, N query heads, G key/value heads, H head width, P blocks of a table,
T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benches.scale import BANDWIDTHS_GB_S, decode_point, roofline_seconds, speed, time_steps
from torch.profiler import ProfilerActivity, profile

from compass.distributed import Topology
from compass.errors import UserError
from compass.generate.attention.decode_backends import BACKENDS, DecodeTables, choose_attention
from compass.generate.attention.kv_cache import KVCache
from compass.generate.config import GeneratorConfig
from compass.generate.fp8.numbers import E4M3
from compass.generate.generator import Generator
from compass.models.config import PolicyConfig
from compass.models.flops import peak_tflops, training_flops
from compass.models.parallel import build_policy, local_part
from compass.models.policy import Policy
from compass.models.specs import ModelSpec
from compass.rl.pack import Trained, pack_microbatch
from compass.train.loss import GrpoConfig
from compass.train.optim_config import OptimConfig
from compass.train.trainer import Trainer
from compass.types import Microbatch, RolloutTokens

BLOCK_SIZE = 16
FLASH_BLOCK_SIZE = 256
"""What FlashAttention 2 asks for; with it the two backends that rest on it can be measured."""
NUM_STEPS = 16
"""Decoding steps timed at each size."""
TRAIN_STEPS = 3


class Deadline:
    """When to stop."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end


def peaks(device: torch.device) -> tuple[float, float] | None:
    """Dense bfloat16 TFLOP/s and GB/s of a device; None where they are not in the tables."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    tflops = peak_tflops(name)
    gb_per_s = next((rate for part, rate in BANDWIDTHS_GB_S if part in name), None)
    return None if tflops is None or gb_per_s is None else (tflops, gb_per_s)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Mean of `repeats` runs in a row, after three that are not counted."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - started) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def measure_device(device: torch.device, deadline: Deadline) -> list[dict[str, Any]]:
    """What the device itself can do: a large copy and a large bfloat16 product, to hold the rest
    against. Nothing off CUDA."""
    if device.type != "cuda" or deadline.is_over:
        return []
    source = torch.randn((1 << 28,), device=device)
    target = torch.empty_like(source)
    copied = seconds_of(lambda: target.copy_(source), device, repeats=10)
    a, b = (torch.randn((8192, 8192), device=device).bfloat16() for _ in range(2))
    multiplied = seconds_of(lambda: a @ b, device, repeats=10)
    return [
        {
            "copy_gb_per_s": 2 * source.nbytes / copied / 1e9,
            "bf16_tflops_per_s": 2 * 8192**3 / multiplied / 1e12,
        }
    ]


def random_policy(spec: ModelSpec, dtype: str, topology: Topology) -> Policy:
    """Weights drawn on the device: normal as in `init_policy`, norms one."""

    @torch.no_grad()
    def fill(policy: Policy) -> None:
        torch.manual_seed(0)
        for parameter in policy.parameters():
            local = local_part(parameter)
            if local.dim() == 1:
                local.fill_(1.0)
            else:
                local.normal_(0.0, spec.init_std)

    return build_policy(spec, topology, PolicyConfig(dtype=dtype), fill)  # type: ignore[arg-type]


def measure_kernels(
    spec: ModelSpec,
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    deadline: Deadline,
) -> list[dict[str, Any]]:
    """Every attention backend that can run here, against `gather`, at (batch, context) sizes.

    Each must agree with `gather` first, to one part in a hundred of the whole result's norm.
    """
    rows: list[dict[str, Any]] = []
    for batch, context in sizes:
        for name, kv_dtype, block_size in _kernels(dtype, device):
            if deadline.is_over:
                return rows
            cache, tables = _filled_cache(spec, batch, context, kv_dtype, block_size, device)
            q_BNH = torch.randn((batch, spec.num_heads, spec.head_dim), device=device).to(dtype)
            step = BACKENDS[name](cache, tables)
            gather = BACKENDS["gather"](cache, tables)
            scale = spec.head_dim**-0.5
            runs = [partial(x.attend, 0, q_BNH, scale) for x in (step, gather)]
            mine, theirs = (run().float() for run in runs)
            gap = (mine - theirs).norm() / theirs.norm()
            assert gap <= 1e-2, f"{name} differs from gather by {gap:.1e} of its norm"
            seconds, gathered = (seconds_of(run, device, repeats=20) for run in runs)
            live = 2 * batch * context * spec.num_kv_heads * spec.head_dim * kv_dtype.itemsize
            rate = live / seconds / 1e9
            known = peaks(device)
            rows.append(
                {
                    "backend": name,
                    "kv_dtype": str(kv_dtype).removeprefix("torch."),
                    "block_size": block_size,
                    "batch": batch,
                    "context": context,
                    "us": seconds * 1e6,
                    "gather_us": gathered * 1e6,
                    "ratio_gather": gathered / seconds,
                    "gb_per_s": rate,
                    "bandwidth_share": None if known is None else rate / known[1],
                }
            )
    return rows


def _kernels(dtype: torch.dtype, device: torch.device) -> list[tuple[str, torch.dtype, int]]:
    """(backend, type of keys, page size) of all that can run here."""
    found = []
    for name in BACKENDS:
        for kv_dtype in (dtype, E4M3):
            size = FLASH_BLOCK_SIZE if name in ("varlen", "flash") else BLOCK_SIZE
            try:
                choose_attention(name, device=device, kv_dtype=kv_dtype, block_size=size)  # type: ignore[arg-type]
            except UserError:
                continue
            found.append((name, kv_dtype, size))
    return found


def _filled_cache(
    spec: ModelSpec,
    batch: int,
    context: int,
    kv_dtype: torch.dtype,
    block_size: int,
    device: torch.device,
) -> tuple[KVCache, DecodeTables]:
    """One layer of random keys and values, the pages of each sequence in no order."""
    torch.manual_seed(0)
    width = -(-context // block_size)
    cache = KVCache(
        replace(spec, num_layers=1, dense_layers=()),
        num_blocks=batch * width,
        block_size=block_size,
        dtype=kv_dtype,
        device=device,
    )
    rows_TGH = (block_size * width, spec.num_kv_heads, spec.head_dim)
    for first in range(batch):
        slots_T = torch.arange(rows_TGH[0], device=device) + first * rows_TGH[0]
        k_TGH, v_TGH = (torch.randn(rows_TGH, device=device) for _ in range(2))
        written = torch.float32 if kv_dtype == E4M3 else kv_dtype
        cache.write(0, slots_T, k_TGH.to(written), v_TGH.to(written))
    table = torch.randperm(batch * width, device=device).view(batch, width).int()
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
    return cache, DecodeTables(blocks_BP=table, lengths_B=lengths, max_length=context)


VARIANTS: dict[str, dict[str, Any]] = {
    "direct": {"cuda_graphs": False},
    "direct, gather": {"attention": "gather", "cuda_graphs": False},
    "fp8": {"weights": "fp8", "kv_dtype": "fp8", "cuda_graphs": False},
    "direct, graphs": {"cuda_graphs": True},
    "fp8, graphs": {"weights": "fp8", "kv_dtype": "fp8", "cuda_graphs": True},
    "fp8 weights, graphs": {"weights": "fp8", "cuda_graphs": True},
}
"""Settings of the generator that are compared."""


def measure_decoding(
    policy: Policy,
    topology: Topology,
    variant: str,
    sizes: Sequence[tuple[int, int]],
    deadline: Deadline,
) -> list[dict[str, Any]]:
    """Tokens/s of the whole generator, scheduling, sampling and routes included, under the settings
    of one of `VARIANTS`."""
    rows: list[dict[str, Any]] = []
    if deadline.is_over:
        return rows
    settings = VARIANTS[variant]
    blocks = max(batch * (-(-(c + NUM_STEPS + 2) // BLOCK_SIZE) + 2) for batch, c in sizes)
    config = GeneratorConfig(
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
        max_num_seqs=max(batch for batch, _ in sizes),
        max_tokens_per_step=max(batch * context for batch, context in sizes),
        **settings,
    )
    try:
        generator = Generator(policy, config, topology)
    except UserError as error:
        return [{"variant": variant, "refused": str(error)}]
    for batch, context in sizes:
        if deadline.is_over:
            break
        # The first run compiles kernels and records graphs, all in its first decode step.
        first, steps = (time_steps(generator, batch, context, NUM_STEPS)[1:] for _ in range(2))
        point = decode_point(batch, context, NUM_STEPS, statistics.median(steps))
        rows.append(
            {
                "variant": variant,
                "batch": batch,
                "context": context,
                "ms_per_step": point.seconds * 1e3,
                "ms_first": first[0] * 1e3,
                "tokens_per_s": speed(point),
                "roofline_share": _roofline_share(policy, point, settings, topology.device),
                "launches": launches_per_step(generator, batch, context),
            }
        )
    return rows


def measure_refresh(
    policy: Policy, topology: Topology, variant: str, deadline: Deadline
) -> list[dict[str, Any]]:
    """Giving the generator the policy's weights after a step, under the settings of one of
    `VARIANTS`."""
    if deadline.is_over:
        return []
    config = GeneratorConfig(num_blocks=64, max_num_seqs=4, **VARIANTS[variant])
    generator = Generator(policy, config, topology)
    seconds = seconds_of(lambda: generator.load_weights(policy, 0), topology.device, repeats=5)
    return [{"variant": variant, "ms": seconds * 1e3}]


def launches_per_step(generator: Generator, batch: int, context: int) -> int | None:
    """Kernels that one decode step puts on the device: those of a run with two steps less those of
    a run with one. None off CUDA."""
    if generator.topology.device.type != "cuda":
        return None
    counts = []
    for num_steps in (1, 2):
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            time_steps(generator, batch, context, num_steps)
            torch.cuda.synchronize()
        counts.append(sum(e.count for e in recorded.key_averages() if e.device_time_total > 0))
    return counts[1] - counts[0]


def _roofline_share(
    policy: Policy, point: Any, settings: dict[str, Any], device: torch.device
) -> float | None:
    """Least possible time over measured time. FP8 is counted as one byte for every weight,
    although embeddings and the output projection keep the compute dtype."""
    known = peaks(device)
    if known is None:
        return None
    itemsize = 1 if settings.get("weights") == "fp8" else policy.compute_dtype.itemsize
    least = roofline_seconds(
        policy.spec, point, itemsize=itemsize, tflops=known[0], gb_per_s=known[1]
    )
    return least / point.seconds


def measure_training(
    policy: Policy, topology: Topology, num_sequences: int, num_tokens: int, deadline: Deadline
) -> list[dict[str, Any]]:
    """One GRPO step on one microbatch with replayed routes, AdamW included."""
    if deadline.is_over:
        return []
    microbatch = _random_microbatch(policy.spec, num_sequences, num_tokens)
    trainer = Trainer(policy, topology, OptimConfig(warmup_steps=0), num_steps=TRAIN_STEPS + 1)
    loss = GrpoConfig().bind()
    if topology.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(topology.device)
    seconds = []
    for step in range(TRAIN_STEPS + 1):
        started = time.perf_counter()
        trainer.forward_backward(
            microbatch, loss, num_rollouts=num_sequences, num_tokens=len(microbatch.rows)
        )
        trainer.step()  # reads the gradient's norm, and so waits for the device
        if step:
            seconds.append(time.perf_counter() - started)
        if deadline.is_over and seconds:
            break
    spent = statistics.median(seconds)
    fed = num_tokens - 1
    flops = training_flops(policy.spec, [(fed, fed)] * num_sequences)
    known = peaks(topology.device)
    figures = {
        "sequences": num_sequences,
        "tokens_per_sequence": num_tokens,
        "seconds_per_step": spent,
        "tokens_per_s": num_sequences * fed / spent,
        "tflops_per_s": flops / spent / 1e12,
        "peak_share": None if known is None else flops / spent / 1e12 / known[0],
        "peak_memory_gb": _peak_memory_gb(topology.device),
    }
    return [figures]


def _peak_memory_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _random_microbatch(spec: ModelSpec, num_sequences: int, num_tokens: int) -> Microbatch:
    draw = torch.Generator().manual_seed(0)
    items = []
    for i in range(num_sequences):
        noise = torch.rand((num_tokens - 1, spec.num_moe_layers, spec.num_experts), generator=draw)
        loss_mask = torch.ones(num_tokens, dtype=torch.bool)
        loss_mask[0] = False
        tokens = RolloutTokens(
            token_ids=torch.randint(spec.vocab_size, (num_tokens,), generator=draw),
            loss_mask=loss_mask,
            rollout_logprobs=torch.full((num_tokens,), -1.0),
            routed_experts=noise.argsort(dim=-1)[..., : spec.top_k].to(torch.uint8),
        )
        items.append(Trained(tokens=tokens, advantage=1.0 if i % 2 else -1.0))
    return pack_microbatch(items, spec, replay=True)
