"""Refreshing the generator's weights, against copying a state dict into a second model.

Between refreshes the policy takes an optimizer step, so that there is something new to take over.
`direct` generates on the policy's own gathered parameters; `fp8` quantises this rank's shards into
buffers of its own and receives the other ranks'. The peer gathers a full state dict and loads it
into a model that stands for a separate engine's, on the same device. `ratio` is its time over
`direct`'s.

Bytes are counted at the operations that write them (every result and in-place argument of every
torch operation). What a refresh gathers is not lost: the trainer's next forward pass finds it
there. So what `direct` costs is the difference between a refresh with a scoring pass after it and
that pass alone, and the gate on it is that every parameter of the generator lives at the address of
the policy's. Run it under torchrun to have something to gather:

    torchrun --nproc-per-node 2 tools/bench.py sync --json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from benches.batch import spec_named
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compass.config import parse
from compass.distributed import ParallelConfig, Topology, init_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.fp8.view import Fp8View
from compass.generate.generator import Generator
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, full_tensor, init_policy, reshard
from compass.models.policy import Policy, build_model
from compass.rl.pack import filler_microbatch
from compass.train.optim_config import OptimConfig
from compass.train.trainer import Trainer

LIMIT = 2.0
"""Least ratio of the peer's time to that of `direct` that counts as good enough."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py sync`."""

    json: bool = False
    """End with one line of JSON."""
    spec: str = "debug-4m"
    """Named model; random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the trainer and of `direct`."""
    repeats: int = 9
    """Counted refreshes of each kind, after one that is not."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How ranks share the model."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats={self.repeats} must be at least 1")


class WrittenBytes(TorchDispatchMode):
    """Adds up the bytes that torch operations write while it is entered: what they return that is
    no view, and what they change in place. Fresh memory that nothing is written to is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run `func` and count."""
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        values = [*args, *[None] * (len(schema.arguments) - len(args))]
        named = kwargs or {}
        for argument, value in zip(schema.arguments, values, strict=True):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.total += _num_bytes(named.get(argument.name, value))
        if "empty" not in schema.name:
            returned = result if isinstance(result, tuple) else (result,)
            for slot, value in zip(schema.returns, returned, strict=False):
                if slot.alias_info is None:
                    self.total += _num_bytes(value)
        return result


def _num_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(_num_bytes(item) for item in value)
    return 0


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    torch.set_num_threads(1)
    spec = spec_named(cfg.spec)
    topology = init_topology(cfg.parallel)
    policy = build_policy(
        spec, topology, PolicyConfig(dtype=cfg.dtype), lambda policy: init_policy(policy, 0)
    )
    trainer = Trainer(policy, topology, OptimConfig(warmup_steps=0), num_steps=1)
    direct, fp8 = (
        Generator(policy, GeneratorConfig(num_blocks=1, weights=weights), topology)
        for weights in ("direct", "fp8")
    )
    assert isinstance(fp8.view, Fp8View)
    peer = build_model(spec, topology.device).to(policy.compute_dtype)
    sides: dict[str, Callable[[], None]] = {
        "direct": lambda: direct.load_weights(policy, 0),
        "fp8": lambda: fp8.load_weights(policy, 0),
        "state dict": lambda: copy_state_dict(policy, peer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(cfg.repeats + 1):
        for name, side in sides.items():
            take_step(trainer)
            spent = wall_seconds(side, topology)
            if repeat:
                seconds[name].append(spent)
    check_same_weights(direct, policy, peer)
    num_bytes = {name: written_bytes(side) for name, side in sides.items()}

    def refresh_and_score() -> None:
        sides["direct"]()
        score(trainer)

    figures = {
        "weight_bytes": sum(p.numel() * p.element_size() for p in direct.view.model.parameters()),
        "bytes_direct": written_bytes(refresh_and_score) - written_bytes(partial(score, trainer)),
        "bytes_gathered_direct": num_bytes["direct"],
        "bytes_fp8": num_bytes["fp8"],
        "bytes_received_fp8": fp8.view.num_gathered_bytes,
        "bytes_state_dict": num_bytes["state dict"],
    }
    dist.destroy_process_group()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["state dict"] / medians["direct"]
    if not topology.is_main:
        return None
    _print(cfg, topology, medians, figures, ratio)
    if not cfg.json:
        return None
    return {
        "ratio": ratio,
        "limit": LIMIT,
        "ratio_state_dict_over_fp8": medians["state dict"] / medians["fp8"],
        **figures,
        "world_size": topology.world_size,
        "wall_seconds": seconds,
    }


def copy_state_dict(policy: Policy, peer: Policy) -> None:
    """What a generator in an engine of its own needs."""
    reshard(policy)
    with torch.no_grad():
        state = {name: full_tensor(p) for name, p in policy.named_parameters()}
    peer.load_state_dict(state, strict=False)  # a tied projection is there once


def take_step(trainer: Trainer) -> None:
    """New weights, and gathered ones given up, as after an update."""
    reshard(trainer.policy)
    for parameter in trainer.policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.step()


def score(trainer: Trainer) -> None:
    """The next thing that a trainer does with its weights: one token's forward pass."""
    trainer.score(filler_microbatch(trainer.policy.spec, replay=False))
    reshard(trainer.policy)


def wall_seconds(work: Callable[[], object], topology: Topology) -> float:
    """Of `work` on the slowest rank, which all ranks begin together. Collective."""
    synchronise(topology)
    topology.barrier()
    started = time.perf_counter()
    work()
    synchronise(topology)
    return topology.all_reduce_max(torch.tensor(time.perf_counter() - started)).item()


def synchronise(topology: Topology) -> None:
    """Wait for the device."""
    if topology.device.type == "cuda":
        torch.cuda.synchronize(topology.device)


def written_bytes(work: Callable[[], object]) -> int:
    """Bytes that the torch operations of `work` write on this rank."""
    with WrittenBytes() as counter:
        work()
    return counter.total


def check_same_weights(direct: Generator, policy: Policy, peer: Policy) -> None:
    """The gate: the generator's parameters lie where the policy's do, and the peer has their
    values."""
    direct.load_weights(policy, 0)
    theirs = dict(policy.named_parameters())
    copies = dict(peer.named_parameters())
    for name, parameter in direct.view.model.named_parameters():
        assert parameter.data_ptr() == theirs[name].data_ptr(), f"{name} is a copy"
        if "inner_experts" not in name or len(parameter) == len(copies[name]):
            assert parameter.equal(copies[name]), f"the peer's {name} differs"


def _print(
    cfg: Config,
    topology: Topology,
    medians: Mapping[str, float],
    figures: Mapping[str, int],
    ratio: float,
) -> None:
    table = Table(
        title=f"{cfg.spec}, {cfg.dtype}, {topology.world_size} ranks, weights "
        f"{figures['weight_bytes'] / 1e6:.2f} MB on each"
    )
    table.add_column("refresh")
    for column in ("ms", "MB written", "MB beyond the trainer's own", "MB received"):
        table.add_column(column, justify="right")
    rows = (
        ("direct", "bytes_gathered_direct", "bytes_direct", None),
        ("fp8", "bytes_fp8", "bytes_fp8", "bytes_received_fp8"),
        ("state dict", "bytes_state_dict", "bytes_state_dict", None),
    )
    for name, *keys in rows:
        cells = ("" if key is None else f"{figures[key] / 1e6:.2f}" for key in keys)
        table.add_row(name, f"{medians[name] * 1e3:.2f}", *cells)
    console = Console()
    console.print(table)
    verdict = "met" if ratio >= LIMIT else "MISSED"
    console.print(f"direct is {ratio:.1f}x faster than a state dict (limit {LIMIT:g}: {verdict})")
