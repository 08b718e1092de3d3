"""Bytes of tensors alive, as operations make them and references drop them.

Works on real and on fake tensors alike, so that what a simulation predicts can be held against what
a run holds. It counts storages, not what an allocator keeps, and not what kernels use inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """While entered, follows every tensor of one device type that an operation touches."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.current = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at once since `restart` or the last `mark`."""
        self.marked: list[int] = []
        """The peaks up to each `mark` since `restart`."""
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """Measure the peak from here on."""
        self.marked = []
        self.peak = self.current

    def mark(self) -> None:
        """End a stretch whose peak is wanted by itself."""
        self.marked.append(self.peak)
        self.peak = self.current

    def see(self, *tensors: Tensor) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._see(tensor)

    def __enter__(self) -> MemoryTracker:
        self._resizing = _following_resizes(self._resized)
        self._resizing.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._resizing.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # An operation may also grow what it is given (`out=`).
        for leaf in tree_leaves((result, args, kwargs)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):  # DTensor, moments of 8 bits, ...
            parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            self.see(*(part for part in parts if isinstance(part, Tensor)))
            return
        if tensor.device.type != self.device_type or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            weakref.finalize(storage, self._gone, key)
        self._set(key, storage.nbytes())

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            self._set(storage._cdata, storage.nbytes())

    def _gone(self, key: int) -> None:
        self.current -= self._sizes.pop(key)

    def _set(self, key: int, num_bytes: int) -> None:
        self.current += num_bytes - self._sizes.get(key, 0)
        self._sizes[key] = num_bytes
        self.peak = max(self.peak, self.current)


@contextmanager
def _following_resizes(resized: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """FSDP frees and allocates gathered weights by resizing storages, which is no operation."""
    original = torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        result = original(storage, size)
        resized(storage)
        return result

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]
