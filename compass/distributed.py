"""One process per device: topology, meshes, and how a program ends.

Mesh axes: `dp_replicate` x `dp_shard` is the dense mesh (FSDP2, hybrid when dp_replicate > 1).
Experts live on `dp_replicate` x `efsdp` x `ep`, where efsdp = dp_shard / ep and `ep` is innermost,
so that expert-parallel peers are neighbours.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from signal import Signals, signal
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from compass.cli import FAILED, USER_MISTAKE, one_line
from compass.config import ConfigT, parse
from compass.errors import FailedRunError, UserError
from compass.machine.devices import check_compiler, check_gpus, choose_device, this_machine
from compass.machine.signals import SIGNALS, SignalWatch, StoppedBySignal

SECONDS_TO_LET_GO_AFTER_A_SIGNAL = 5.0
"""A rank that hangs in a collective, where no exception reaches it, ends after this."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How ranks share the model."""

    ep: int = 1
    """Expert-parallel degree; divides the number of experts and dp_shard."""
    dp_replicate: int = 1
    """Replicas of the sharded model (hybrid FSDP); 1 shards over all ranks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when there is one, and refuses one that torch cannot use."""
    timeout_seconds: float = 600.0
    """A collective that waits longer than this fails on every rank."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This rank's place among all ranks. Built by `init_topology`."""

    rank: int
    world_size: int
    device: torch.device
    dp_replicate: int
    ep: int
    dense_mesh: DeviceMesh
    """FSDP mesh of everything but experts: ("dp_shard",) or ("dp_replicate", "dp_shard")."""
    expert_fsdp_mesh: DeviceMesh
    """FSDP mesh of experts: ("efsdp",) or ("dp_replicate", "efsdp")."""
    ep_mesh: DeviceMesh | None
    """Expert-parallel mesh; None when ep == 1."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    @property
    def store(self) -> dist.Store:
        """The key-value store through which the process group met: torchrun's, or its own."""
        # torch has no public name for it; opening a second one would take a second free port.
        return dist.distributed_c10d._get_default_store()

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; `tensor` is moved to this rank's device."""
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, in place; `tensor` is moved to this rank's device."""
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one. Collective."""
        if self.world_size == 1:
            return flag
        return bool(self.all_reduce_max(torch.tensor([int(flag)])).item())

    def max_int(self, value: int) -> int:
        """The largest `value` of all ranks. Collective."""
        return int(self.all_reduce_max(torch.tensor([value])).item())

    def max_over_ep(self, values: Sequence[int]) -> list[int]:
        """Each number's largest over the ranks that share experts with this one; on the host, so
        that nothing a device has been given to do is waited for. Collective over them."""
        if self.ep_mesh is None:
            return list(values)
        largest = torch.tensor(values)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.ep_mesh.get_group())
        return largest.tolist()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank. Collective."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def all_to_all_object(self, values: Sequence[Any]) -> list[Any]:
        """What each rank has for this one, by rank, given what this one has for each; pickled, and
        only where it goes to. Collective."""
        if self.world_size == 1:
            return list(values)
        pickled = [torch.frombuffer(bytearray(pickle.dumps(v)), dtype=torch.uint8) for v in values]
        sizes = torch.tensor([len(p) for p in pickled])
        coming = torch.empty_like(sizes)
        dist.all_to_all_single(coming, sizes)
        received = torch.empty(int(coming.sum()), dtype=torch.uint8)
        dist.all_to_all_single(received, torch.cat(pickled), coming.tolist(), sizes.tolist())
        return [pickle.loads(part.numpy().tobytes()) for part in received.split(coming.tolist())]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()


def init_topology(cfg: ParallelConfig) -> Topology:
    """Join the process group (torchrun's, or a group of one when launched by plain python).

    Raises:
        UserError: sizes that do not divide, or a device that is not there.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _check_degrees(cfg, world_size)
    device = _open_device(cfg)
    timeout = timedelta(seconds=cfg.timeout_seconds)
    if not dist.is_initialized():
        backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
        store = None if "RANK" in os.environ else dist.HashStore()
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    topology = build_topology(
        rank, world_size, device=device, ep=cfg.ep, dp_replicate=cfg.dp_replicate, timeout=timeout
    )
    # A rank that meets a user's mistake now leaves at once; were another still connecting to it,
    # that one would fail with a lost connection instead of the mistake.
    topology.barrier()
    return topology


def build_topology(
    rank: int,
    world_size: int,
    *,
    device: torch.device,
    ep: int = 1,
    dp_replicate: int = 1,
    timeout: timedelta | None = None,
) -> Topology:
    """Meshes over an initialised process group; their collectives wait for `timeout`, by default
    torch's half an hour."""
    dp_shard = world_size // dp_replicate
    shape = (dp_replicate, dp_shard // ep, ep)
    experts = init_device_mesh(device.type, shape, mesh_dim_names=("dp_replicate", "efsdp", "ep"))
    dense = init_device_mesh(
        device.type, (dp_replicate, dp_shard), mesh_dim_names=("dp_replicate", "dp_shard")
    )
    if timeout is not None:
        for group in (*experts.get_all_groups(), *dense.get_all_groups()):
            # What `new_group` takes, a mesh does not pass on (torch 2.13).
            dist.distributed_c10d._set_pg_timeout(timeout, group)
    replicated = dp_replicate > 1
    return Topology(
        rank=rank,
        world_size=world_size,
        device=device,
        dp_replicate=dp_replicate,
        ep=ep,
        dense_mesh=dense if replicated else dense["dp_shard"],
        expert_fsdp_mesh=experts["dp_replicate", "efsdp"] if replicated else experts["efsdp"],
        ep_mesh=experts["ep"] if ep > 1 else None,
    )


def _open_device(cfg: ParallelConfig) -> torch.device:
    """This rank's device, ready to compute on."""
    machine = this_machine()
    if choose_device(cfg.device, machine) == "cpu":
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_gpus(machine, num_local_ranks=num_local_ranks, local_rank=local_rank)
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    # Products of bfloat16 are summed in float32 to the end, also where a sum is split up.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    from compass.machine.trial_kernel import compile_and_run  # triton need not be there for the CPU

    check_compiler(lambda: compile_and_run(device))
    return device


def _check_degrees(cfg: ParallelConfig, world_size: int) -> None:
    for name, degree in (("ep", cfg.ep), ("dp_replicate", cfg.dp_replicate)):
        if degree < 1:
            raise UserError(f"parallel.{name}={degree} must be at least 1")
    if world_size % (cfg.dp_replicate * cfg.ep):
        raise UserError(
            f"parallel.dp_replicate={cfg.dp_replicate} times parallel.ep={cfg.ep} does not divide "
            f"the world size {world_size}; change --nproc-per-node or the degrees"
        )


@contextmanager
def raised_together(topology: Topology) -> Iterator[None]:
    """A `UserError` inside the block on any rank is raised on all of them, so that none hangs in
    a collective the others will never join. The block itself must hold no collective."""
    error: str | None = None
    try:
        yield
    except UserError as e:
        error = str(e)
    errors = [e for e in topology.all_gather_object(error) if e is not None]
    if errors:
        raise UserError(errors[0])


def read_flags(config_cls: type[ConfigT], description: str | None) -> ConfigT:
    """The config that the command line asks for; mistakes end the process as `launch` would, and
    `--help` with code 0. For the top of a recipe, before the imports that take seconds."""
    try:
        config = parse(config_cls, sys.argv[1:], description=description or "")
    except UserError as e:
        _say(one_line(e))
        sys.exit(USER_MISTAKE)
    for number in SIGNALS:  # until `launch`: an import that is interrupted prints pages
        signal(number, lambda number, frame: _leave(Signals(number), again=True))
    return config


def launch(main: Callable[[], None]) -> None:
    """Run a recipe and end the process: 0 done, 2 the user's mistake, 1 a failed run (in one line
    each), 1 ours. A signal that the recipe does not answer itself is one line and 128 + its number.
    """
    code = 0
    watch = SignalWatch(
        react=_stop, leave=_leave, patience_seconds=SECONDS_TO_LET_GO_AFTER_A_SIGNAL
    )
    try:
        with watch:
            main()
    except UserError as e:
        code = USER_MISTAKE
        _say(one_line(e))
    except FailedRunError as e:
        code = FAILED
        _say(one_line(e))
    except StoppedBySignal as stop:
        _say(str(stop))
        exit_at_once(stop.code)  # the others may be inside a collective: do not wait for them
    except Exception:
        traceback.print_exc()
        if dist.is_initialized():
            exit_at_once(FAILED)
        code = FAILED
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


def _stop(signal: Signals) -> None:
    raise StoppedBySignal(_stopped_line(signal), code=128 + signal)


def _leave(signal: Signals, again: bool) -> None:
    _say(_stopped_line(signal))
    exit_at_once(128 + signal)


def _stopped_line(signal: Signals) -> str:
    return f"stopped by {signal.name} before it was done: what was not finished is not there"


def _say(line: str) -> None:
    """One line for all ranks together, or for those of a machine."""
    # Before ranks have met, what is wrong with a machine only its own ranks know.
    number = "RANK" if dist.is_initialized() else "LOCAL_RANK"
    if os.environ.get(number, "0") == "0":
        print(line, file=sys.stderr, flush=True)


def exit_at_once(code: int) -> NoReturn:
    """End the process from any thread, waiting for nobody."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
