"""The weights of a checkpoint, parameter by parameter, in one process without a process group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from compass.checkpoint.tensors import OF_THE_MODEL, saved_weights
from compass.errors import UserError


class SavedWeights:
    """The parameters that lie in the checkpoint `folder`, each read when it is asked for.

    Raises:
        UserError: one of `shapes` is missing, or has another shape.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._reader = dcp.FileSystemReader(folder)
        metadata = self._reader.read_metadata()
        self._saved = saved_weights(metadata)
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        for name, shape in shapes.items():
            if name not in self._saved or tuple(self._saved[name].size) != shape:
                saved = self._saved.get(name)
                found = "is missing" if saved is None else f"has shape {tuple(saved.size)}"
                raise UserError(
                    f"{folder}: {name} {found}, and its config.json asks for {shape}; give another "
                    "checkpoint"
                )

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A whole parameter in `dtype`. Beside it, memory holds one shard as it is stored."""
        saved = self._saved[name]
        whole = torch.empty(saved.size, dtype=dtype)
        items = [_read_item(name, chunk) for chunk in saved.chunks]
        self._reader.read_data(LoadPlan(items), _IntoPlace(whole)).wait()
        return whole


def _read_item(name: str, chunk: ChunkStorageMetadata) -> ReadItem:
    """A shard, as one rank wrote it."""
    index = MetadataIndex(f"{OF_THE_MODEL}{name}", chunk.offsets)
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=chunk.offsets,
        storage_index=index,
        storage_offsets=torch.Size([0] * len(chunk.sizes)),
        lengths=chunk.sizes,
    )


class _IntoPlace(dcp.DefaultLoadPlanner):
    """Where shards of one tensor go. The reader copies them there, and so casts them."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__()
        self._whole = whole

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        place = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._whole[tuple(slice(start, start + size) for start, size in place)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It is where it belongs."""
