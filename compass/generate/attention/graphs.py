"""CUDA graphs of decode steps: one for each form of step, recorded when it is first met.

A step launches some ten kernels a layer, each on microseconds of work; replaying the lot as one
graph takes the launching off the host. A graph holds addresses and sizes, so steps are rounded up
to a few forms, and graphs are thrown away when the weights have moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compass.distributed import Topology
from compass.errors import UserError
from compass.models.policy import Policy

_LENGTH_STEP = 256
"""Shortest rounded length: what one program of our kernel reads, so that rounding up further costs
no more than programs that find nothing to do."""

Forward = Callable[[], Tensor]


class Recorder(Protocol):
    """Turns a function of fixed addresses into one that does the same again."""

    def __call__(self, forward: Forward) -> Forward: ...


class GraphShape(NamedTuple):
    """What a decode step is fixed to: alike on all ranks that share experts."""

    num_rows: int
    max_length: int
    """Tokens that the longest row may attend to."""


class DecodeGraphs:
    """The recorded steps of one model over one cache."""

    def __init__(
        self, make_recorder: Callable[[], Recorder], *, max_rows: int, max_length: int
    ) -> None:
        """`make_recorder` is called again whenever all graphs are dropped, with their memory."""
        self.max_rows = max_rows
        self.max_length = max_length
        self.num_recorded = 0
        """Since construction."""
        self._make_recorder = make_recorder
        self._record = make_recorder()
        self._recorded: dict[GraphShape, Forward] = {}
        self._addresses: tuple[int, ...] = ()

    def shape_for(self, num_rows: int, length: int) -> GraphShape:
        """The smallest form that holds a step: each size the next power of two (lengths: times
        256), or the largest there can be."""
        return GraphShape(
            num_rows=min(_next_power_of_two(num_rows), self.max_rows),
            max_length=min(
                _LENGTH_STEP * _next_power_of_two(-(-length // _LENGTH_STEP)), self.max_length
            ),
        )

    def run(self, shape: GraphShape, forward: Forward) -> Tensor:
        """What `forward` returns, which must be determined by `shape` and by memory at addresses
        that stay. The result is valid until the next run."""
        if shape not in self._recorded:
            self._recorded[shape] = self._record(forward)
            self.num_recorded += 1
        return self._recorded[shape]()

    def follow(self, model: nn.Module, topology: Topology) -> None:
        """To be called when the weights may have moved: drops every graph if they have, on any of
        the ranks that share experts. Recording runs a step's exchanges once more than replaying
        does, so all of them must do the same. Collective over them.

        Gathered weights (`weights="direct"`) live in storage that the trainer frees and FSDP
        allocates anew, often but not always at the same place; FP8 buffers never move.
        """
        addresses = weight_addresses(model)
        (moved,) = topology.max_over_ep([addresses != self._addresses])
        if moved:
            self.drop()
        self._addresses = addresses

    def drop(self) -> None:
        """Forget every graph, and give their memory back."""
        if self._recorded:
            self._recorded.clear()
            self._record = self._make_recorder()


def use_graphs(wanted: bool | None, policy: Policy, attention: str, topology: Topology) -> bool:
    """Whether decode steps are to be recorded: None, wherever they can be.

    Raises:
        UserError: they are wanted where they cannot be: one line with the remedy.
    """
    obstacle = _obstacle(policy, attention, topology.device)
    if wanted and obstacle is not None:
        raise UserError(f"generator.cuda_graphs=True {obstacle}")
    return obstacle is None if wanted is None else wanted


def _obstacle(policy: Policy, attention: str, device: torch.device) -> str | None:
    """Why steps cannot be recorded."""
    if device.type != "cuda":
        return f"on {device.type}: graphs need a CUDA device; set it to False"
    if attention == "gather":
        return (
            "with attention=gather: what it copies has no fixed size; use "
            "generator.attention=triton"
        )
    capability = torch.cuda.get_device_capability(device)
    if policy.spec.num_experts and (capability < (9, 0) or policy.compute_dtype != torch.bfloat16):
        return (
            f"on compute capability {'.'.join(map(str, capability))} in "
            f"{str(policy.compute_dtype).removeprefix('torch.')}: only from 9.0 and in bfloat16 "
            f"do grouped matmuls not ask the host; set it to False"
        )
    return None


def weight_addresses(model: nn.Module) -> tuple[int, ...]:
    """Where every parameter and buffer lies."""
    return tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers()))


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: only one of them runs at a time, and what
    it returns is used before the next one runs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """Runs `forward` once for real, which must do no harm, and records a second run."""
        # Kernels are compiled and libraries allocate their workspaces on a first run, which a
        # recording could not hold.
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            forward()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = forward()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
