"""Hugging Face model directories in: `config.json` and safetensors.

Every rank reads only the slices it owns, straight from the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compass.errors import UserError
from compass.models.config import DTYPES
from compass.models.hf.config import stored_dtype
from compass.models.hf.files import WeightFiles, open_weights
from compass.models.hf.names import expert_stem, hf_names
from compass.models.parallel import local_part, local_slice
from compass.models.policy import Policy
from compass.models.specs import ModelSpec
from compass.text.tokenizer import read_json

_HEAD = "lm_head.weight"


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


def read_dtype(directory: Path | str) -> torch.dtype | None:
    """The dtype that the `config.json` of a Hugging Face directory says its weights have.

    Raises UserError when the file is missing or malformed, or names a dtype that is never written.
    """
    path = Path(directory) / "config.json"
    config = read_json(path)
    try:
        name = stored_dtype(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return None if name is None else DTYPES[name]


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
