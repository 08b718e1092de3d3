"""A checkpoint as a Hugging Face directory: in one process, a parameter at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from compass.checkpoint.folder import damage_of
from compass.checkpoint.weights import SavedWeights
from compass.errors import UserError
from compass.models.hf.save import DEFAULT_SHARD_BYTES, model_files, write_hf
from compass.models.hf.stream import TensorPlan
from compass.models.hf.weights import read_dtype, read_spec
from compass.models.policy import build_model
from compass.text.tokenizer import Tokenizer


def export_checkpoint(
    checkpoint: Path,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> torch.dtype:
    """Write the weights of `checkpoint`, a folder of `compass.checkpoint`, as the Hugging Face
    directory that `save_hf` would have written of the policy.

    There is one process and no process group, and memory holds at most twice the largest parameter.

    Returns:
        what was written: `dtype`, or else the one that the checkpoint's `config.json` names.

    Raises:
        UserError: the checkpoint is damaged, `directory` has anything in it, or it cannot be
            written; nothing half-written stays then.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty folder: choose another output folder")
    damage = damage_of(checkpoint)
    if damage is not None:
        raise UserError(f"{damage}; give another checkpoint")
    spec, tokenizer = read_spec(checkpoint), Tokenizer.from_dir(checkpoint)
    stored = dtype or read_dtype(checkpoint)
    assert stored is not None, "a checkpoint's config.json names one"
    shapes = {name: tuple(p.shape) for name, p in build_model(spec).named_parameters()}
    weights = SavedWeights(checkpoint, shapes)
    write_hf(
        directory,
        {name: TensorPlan(shape=shape, dtype=stored) for name, shape in shapes.items()},
        read=lambda name: weights.read(name, stored),
        files=model_files(spec, stored, tokenizer),
        max_shard_bytes=max_shard_bytes,
    )
    return stored
