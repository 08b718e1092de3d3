"""Writing a safetensors file tensor by tensor, without holding it in memory.

The format: the length of a header as 8 bytes, little-endian; the header, JSON with dtype, shape and
place of every tensor; then their bytes, one after another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8
"""The bytes of the first tensor begin at a multiple of this, as safetensors writes them."""


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """What a tensor will be."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """A file whose tensors are known beforehand; they are written in any order, each to its place,
    which is where safetensors itself puts it."""

    def __init__(self, path: Path, plan: Mapping[str, TensorPlan]) -> None:
        self._plan = dict(plan)
        self._places, header = _layout(plan)
        self._file = path.open("wb")
        self._file.write(header)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor; after the last, the file is on the disk and closed."""
        plan = self._plan.pop(name)
        found = TensorPlan(shape=tuple(tensor.shape), dtype=tensor.dtype)
        assert found == plan, f"{name} is {found} instead of {plan}"
        self._file.seek(self._places[name])
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        if not self._plan:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.close()

    def close(self) -> None:
        """Let go of the file, whole or not. May be repeated."""
        self._file.close()


def _layout(plan: Mapping[str, TensorPlan]) -> tuple[dict[str, int], bytes]:
    """Where each tensor begins, wide dtypes first and then by name, and what stands before."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(plan, key=lambda name: (-plan[name].dtype.itemsize, name)):
        begin, end = end, end + plan[name].num_bytes
        begins[name] = begin
        entries[name] = {
            "dtype": _NAMES[plan[name].dtype],
            "shape": list(plan[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return {name: len(header) + begin for name, begin in begins.items()}, header
