"""Hugging Face model directories in and out: `config.json` and safetensors.

Every rank reads only the slices it owns, straight from the files; on the way out one parameter
at a time is gathered and rank 0 writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.manifest import REMEDY
from compass.models.hf.files import INDEX, WEIGHTS, WeightFiles, open_weights
from compass.models.hf.names import expert_stem, hf_names
from compass.models.parallel import full_tensor, local_part, local_slice, reshard
from compass.models.policy import Policy
from compass.models.specs import ModelSpec
from compass.text.tokenizer import Tokenizer, read_json

_HEAD = "lm_head.weight"
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the values of one parameter lie in a checkpoint."""

    names: tuple[str, ...]
    """One tensor, or one for each expert."""
    shape: tuple[int, ...]
    """Of each of these tensors."""
    per_expert: bool = False
    """The parameter's dimension 0 runs over `names`."""
    first_row: int = 0
    """Where the parameter begins on dimension 1 of a fused gate-and-up tensor."""
    num_rows: int | None = None
    """How many of those rows it takes; None takes all."""


def read_spec(directory: Path | str) -> ModelSpec:
    """The model that a Hugging Face directory holds, from its `config.json`.

    Raises UserError when the file is missing, malformed or of an unsupported architecture.
    """
    path = Path(directory) / "config.json"
    config = read_json(path)
    try:
        return ModelSpec.from_hf(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@torch.no_grad()
def load_hf(policy: Policy, directory: Path | str) -> None:
    """Fill the parameters of `policy`, plain or sharded, from a Hugging Face directory.

    Values are cast to each parameter's dtype. No collectives: every rank opens all files and
    reads its own slices. All checks come before the first write, but for that of the values
    themselves: each is looked at once it is in place, when that costs least.

    Raises UserError on damaged files, on missing, unexpected or differently shaped tensors, on
    values that are not finite, and on an `lm_head` that differs from the embedding it is tied to.
    """
    directory = Path(directory)
    tied = read_spec(directory).tie_word_embeddings
    with open_weights(directory) as files:
        sources = {
            name: _locate(name, tuple(parameter.shape), files)
            for name, parameter in policy.named_parameters()
        }
        _check_names(sources.values(), files, tied)
        _check_shapes(sources.values(), files)
        for name, parameter in policy.named_parameters():
            _read_local(parameter, sources[name], files)
            _check_finite(parameter, sources[name], files)
        if tied and _HEAD in files.places:
            _check_same(policy.tok_embeddings.weight, files)


def save_hf(
    policy: Policy,
    directory: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    topology: Topology | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `policy` as a Hugging Face directory. Collective when there is a `topology`.

    Tensors keep their dtype unless `dtype` is given. Everything is written into a neighbouring
    temporary folder that is then renamed, so `directory` is whole or absent; an earlier export
    at that place is replaced.

    Raises UserError, on all ranks, when `directory` holds something that is not an export, or
    cannot be written (no space, no permission); nothing half-written stays then.
    """
    directory = Path(directory)
    reshard(policy)  # weights gathered for a forward pass are in the compute dtype
    is_main = topology is None or topology.is_main
    staging = directory.with_name(f".{directory.name}.partial")
    try:
        with _writing(directory, topology):
            if is_main:
                check_export(directory)
                _make_empty(staging)
        writer = _ShardWriter(staging, _plan_shards(_tensor_bytes(policy, dtype), max_shard_bytes))
        for name, parameter in policy.named_parameters():
            full = full_tensor(parameter.detach())
            with _writing(directory, topology):
                if is_main:
                    full = full.to(device="cpu", dtype=dtype or full.dtype).contiguous()
                    for hf_name, tensor in _hf_tensors(name, full):
                        writer.add(hf_name, tensor)
            del full
        with _writing(directory, topology):
            if is_main:
                assert not writer.planned, f"never written: {sorted(writer.planned)}"
                writer.write_index()
                stored = dtype or next(policy.parameters()).dtype
                _write_configs(staging, policy.spec, stored, tokenizer)
                _swap_in(staging, directory)
    finally:
        if is_main:
            shutil.rmtree(staging, ignore_errors=True)


# ---- reading


def _locate(name: str, shape: tuple[int, ...], files: WeightFiles) -> _Source:
    experts = expert_stem(name)
    if experts is None:
        return _Source(names=hf_names(name, 0), shape=shape)
    stem, projection = experts
    # transformers 5 keeps experts fused in memory, and writes them so when asked to.
    if f"{stem}.gate_up_proj" not in files.places:
        return _Source(names=hf_names(name, shape[0]), shape=shape[1:], per_expert=True)
    if projection == "down_proj":
        return _Source(names=(f"{stem}.down_proj",), shape=shape)
    num_experts, width, hidden = shape
    return _Source(
        names=(f"{stem}.gate_up_proj",),
        shape=(num_experts, 2 * width, hidden),
        first_row=width if projection == "up_proj" else 0,
        num_rows=width,
    )


def _check_names(sources: Iterable[_Source], files: WeightFiles, tied: bool) -> None:
    expected = {name for source in sources for name in source.names}
    missing = sorted(expected - files.places.keys())
    if missing:
        raise UserError(
            f"{files.directory} lacks {len(missing)} of the {len(expected)} tensors of this model, "
            f"first {missing[0]}: give the checkpoint that belongs to its config.json"
        )
    # Some tied checkpoints carry a copy of the embedding; old ones carry rotary tables.
    surplus = {_HEAD} if tied else set()
    unexpected = sorted(
        name
        for name in files.places.keys() - expected - surplus
        if not name.endswith("rotary_emb.inv_freq")
    )
    if unexpected:
        raise UserError(
            f"{files.directory} holds {len(unexpected)} tensors that this model has no place for, "
            f"first {unexpected[0]}: give the checkpoint that belongs to its config.json"
        )


def _check_shapes(sources: Iterable[_Source], files: WeightFiles) -> None:
    for source in sources:
        for name in source.names:
            found = files.shape(name)
            if found != source.shape:
                raise UserError(
                    f"{files.directory}: {name} has shape {list(found)}, the model needs "
                    f"{list(source.shape)}: give the checkpoint that belongs to this model"
                )


def _read_local(parameter: nn.Parameter, source: _Source, files: WeightFiles) -> None:
    local, rows = local_part(parameter), local_slice(parameter)
    if source.per_expert:
        for row, name in enumerate(source.names[rows]):
            local[row].copy_(files.get_slice(name)[:])
        return
    (name,) = source.names
    stored = files.get_slice(name)
    if not local.numel():
        return
    if source.num_rows is None:
        local.copy_(stored[rows])
    else:
        local.copy_(stored[rows, source.first_row : source.first_row + source.num_rows])


def _check_finite(parameter: nn.Parameter, source: _Source, files: WeightFiles) -> None:
    """Of this rank's shard, as it was read: one pass over it, and one wait for the device."""
    local = local_part(parameter)
    if _is_finite(local):
        return
    name = source.names[0]
    if source.per_expert:
        of_rows = zip(source.names[local_slice(parameter)], local, strict=True)
        name = next(name for name, row in of_rows if not _is_finite(row))
    bad = int((~local.isfinite()).sum())
    raise UserError(
        f"{files.places[name]}: {name} holds values that are not finite in {local.dtype} "
        f"({bad} here): a damaged file, or a run that diverged; give another checkpoint"
    )


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes of a tensor are NaN if one value is."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _check_same(embedding: nn.Parameter, files: WeightFiles) -> None:
    """Tied is what config.json says; a head of its own would be dropped, and could be the one that
    was trained."""
    local, rows = local_part(embedding), local_slice(embedding)
    shape = files.shape(_HEAD)
    if shape == tuple(embedding.shape):
        head = files.get_slice(_HEAD)[rows].to(device=local.device, dtype=local.dtype)
        if torch.equal(head, local):
            return
    raise UserError(
        f"{files.directory}: config.json says tie_word_embeddings true, but {_HEAD} in "
        f"{files.places[_HEAD].name} differs from the embedding: set tie_word_embeddings to false "
        f"to use it, or remove it from the file"
    )


# ---- writing


class _ShardWriter:
    """Collects tensors and writes a file as soon as all of its tensors are there."""

    def __init__(self, directory: Path, shards: list[dict[str, int]]) -> None:
        self.directory = directory
        self.planned = {name: number for number, shard in enumerate(shards) for name in shard}
        self._weight_map = {name: self._file(n, len(shards)) for name, n in self.planned.items()}
        self._total_bytes = sum(sum(shard.values()) for shard in shards)
        self._remaining = [len(shard) for shard in shards]
        self._pending: dict[str, Tensor] = {}

    @staticmethod
    def _file(number: int, count: int) -> str:
        return WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def add(self, name: str, tensor: Tensor) -> None:
        """Tensors come in the order of the plan."""
        number = self.planned.pop(name)
        self._pending[name] = tensor
        self._remaining[number] -= 1
        if not self._remaining[number]:
            file = self._file(number, len(self._remaining))
            save_file(self._pending, self.directory / file, metadata={"format": "pt"})
            self._pending = {}

    def write_index(self) -> None:
        """The map from tensors to files; a single file needs none."""
        if len(self._remaining) > 1:
            index = {"metadata": {"total_size": self._total_bytes}, "weight_map": self._weight_map}
            _write_json(self.directory / INDEX, index)


def _tensor_bytes(policy: Policy, dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes of every Hugging Face tensor, in the order they are written."""
    sizes: dict[str, int] = {}
    for name, parameter in policy.named_parameters():
        names = hf_names(name, parameter.shape[0])
        num_bytes = parameter.numel() * (dtype or parameter.dtype).itemsize
        sizes |= dict.fromkeys(names, num_bytes // len(names))
    return sizes


def _plan_shards(sizes: dict[str, int], max_bytes: int) -> list[dict[str, int]]:
    """Fill files in order; a tensor larger than `max_bytes` gets a file of its own."""
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > max_bytes:
            shards.append({})
        shards[-1][name] = size
    return shards


def _hf_tensors(name: str, full: Tensor) -> Iterator[tuple[str, Tensor]]:
    names = hf_names(name, full.shape[0])
    return zip(names, [full] if expert_stem(name) is None else full, strict=True)


def _write_configs(
    directory: Path, spec: ModelSpec, dtype: torch.dtype, tokenizer: Tokenizer | None
) -> None:
    special: dict[str, Any] = {}
    if tokenizer is not None:
        tokenizer.save(directory)
        special = {
            "eos_token_id": list(tokenizer.stop_token_ids) or None,
            "pad_token_id": tokenizer.pad_token_id,
        }
    generation = directory / "generation_config.json"
    if not generation.exists():
        _write_json(generation, special)
    # transformers 4 reads `torch_dtype`, and 5 still does.
    config = spec.to_hf() | special | {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(directory / "config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_export(directory: Path) -> None:
    """Refuse a place that `save_hf` would refuse, before a run is spent on it.

    Raises:
        UserError: it holds something that is not an export.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another export directory")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "config.json").exists():
        raise UserError(
            f"{directory} is not empty and not an earlier export: choose another directory"
        )


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _swap_in(staging: Path, directory: Path) -> None:
    previous = directory.with_name(f".{directory.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if directory.exists():
        directory.rename(previous)
    staging.rename(directory)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _writing(directory: Path, topology: Topology | None) -> Iterator[None]:
    """What cannot be written on one rank is a `UserError` on all."""
    with raised_together(topology) if topology else nullcontext():
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot write {directory}: {reason}; {REMEDY}") from None
