"""A device without memory that computes nothing, and a world of ranks that are not there.

Tensors on it are fake: they have sizes and lifetimes, and no numbers. It takes CUDA's branches of
the code. It exists once it is made, in this process for good: simulations run in a process of their
own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from compass.generate import sampling
from compass.models import kernels
from compass.models.layers import attention, products, vocabulary

NAME = "simulated"


class _Event:
    """Has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass


class _Stream:
    """Runs everything in order."""

    device_index = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: _Stream) -> None:
        pass

    def wait_event(self, _: _Event) -> None:
        pass

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Backend:
    """What torch and FSDP ask a device's module for."""

    Stream = _Stream
    Event = _Event

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def set_device(self, _: int) -> None:
        pass

    def current_stream(self, *_: Any) -> _Stream:
        return _Stream()

    def stream(self, stream: _Stream) -> _Stream:
        return stream

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, _: int) -> None:
        pass

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class SimulatedDevice:
    """The device, and the mode in which its tensors are made."""

    def __init__(self) -> None:
        """Registers it with torch, which can be done once in a process."""
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        self.device = torch.device(NAME, 0)
        attention.KERNEL_DEVICES.add(NAME)
        products.WIDE_DEVICES.add(NAME)
        if importlib.util.find_spec("triton") is not None:
            _launch_nothing()
            kernels.DEVICES.add(NAME)
        vocabulary.ROWS_PER_CHUNK[NAME] = vocabulary.ROWS_PER_CHUNK["cuda"]
        sampling.LOGITS_PER_CHUNK[NAME] = sampling.LOGITS_PER_CHUNK["cuda"]
        # torch makes some tensors where no mode sees it: from lists of numbers, for one.
        self._library = torch.library.Library("aten", "IMPL")
        for name, make in (("empty.memory_format", self._empty), ("empty_strided", self._strided)):
            self._library.impl(name, make, "PrivateUse1")
        self._library.impl("_copy_from", _copy_nothing, "PrivateUse1")

    def _empty(
        self, size: Any, dtype: Any = None, *_: Any, device: Any = None, **__: Any
    ) -> Tensor:
        made = torch.empty(size, dtype=dtype, device="meta")
        return FakeTensor(self.mode, made, device or self.device)

    def _strided(
        self, size: Any, stride: Any, dtype: Any = None, *_: Any, device: Any = None, **__: Any
    ) -> Tensor:
        made = torch.empty_strided(size, stride, dtype=dtype, device="meta")
        return FakeTensor(self.mode, made, device or self.device)


def _launch_nothing() -> None:
    """Triton's kernels write into tensors that are there before they start."""
    from triton.runtime.jit import JITFunction

    JITFunction.run = lambda *_, **__: None


def _copy_nothing(_source: Tensor, target: Tensor, _non_blocking: bool = False) -> Tensor:
    return target


class WithoutNumbers(TorchDispatchMode):
    """What fake tensors cannot do alone: a number that the host reads is 1, and true; only whether
    there is `any` is false, since it is asked of what is wrong; and grouped products come in any
    dtype (torch knows their shapes for bfloat16 only)."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if hasattr(args[0], "asks_for_any"):
                return False
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped_product(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.any.default:
            result.asks_for_any = True
        if func is torch.ops.aten.lift_fresh.default:
            result.constant = None  # torch 2.11 does not move tensors whose numbers it knows
        return result


def _grouped_product(a: Tensor, b: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows in groups times a matrix for each group, or the groups of an inner axis summed apart."""
    shape = (a.shape[-2], b.shape[-1])
    both_flat = a.ndim == b.ndim == 2
    return a.new_empty((len(offs), *shape) if both_flat else shape)


@contextmanager
def fake_world(world_size: int) -> Iterator[None]:
    """This process as rank 0 of a world of whose other ranks there is none."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
