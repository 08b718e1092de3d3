"""Weights and optimizer state of a checkpoint, in the format of torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from compass.errors import UserError

OF_THE_MODEL = "model."
"""What the names of weights begin with."""


def write_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this rank's shards. Collective.

    Raises:
        UserError: the disk refuses.
    """
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    # Before its first step an optimizer has no state. Asking for it then would take a step of zero
    # gradients, which counts in Adam's bias correction.
    if optimizer.state:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    try:
        dcp.save(state, storage_writer=_Writer(folder, sync_files=True))
    except CheckpointException as e:
        causes = [cause for cause, _ in e.failures.values()]
        if all(isinstance(cause, OSError) for cause in causes):
            reason = causes[0].strerror or causes[0]  # type: ignore[attr-defined]
            raise UserError(f"cannot write the checkpoint {folder}: {reason}") from e
        raise RuntimeError(f"cannot write the checkpoint {folder}") from e  # theirs is no Exception


class _Writer(dcp.FileSystemWriter):
    """Names what the disk said. torch's archive writer answers a failed write with an error of its
    own, whose context is lost on the way to other ranks."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


def read_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights, moments and learning rates in place. Collective."""
    reader = dcp.FileSystemReader(folder)
    options = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    saved = reader.read_metadata().state_dict_metadata
    has_optimizer = any(name.startswith("optimizer.") for name in saved)
    if has_optimizer:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    dcp.load(state, storage_reader=reader)
    set_model_state_dict(model, state["model"])
    if has_optimizer:
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        # Moments and learning rates are state; betas and weight decay are this run's settings.
        for group, of_group in zip(optimizer.param_groups, options, strict=True):
            group.update(of_group)
    else:
        optimizer.state.clear()


def read_weights(folder: Path, model: nn.Module) -> None:
    """Fill the parameters of `model`, plain or sharded, and nothing else. Collective.

    Raises:
        UserError: the checkpoint is of a model of other sizes.
    """
    require_same_shapes(folder, model)
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    set_model_state_dict(model, state["model"])


def require_same_shapes(folder: Path, model: nn.Module) -> None:
    """
    Raises:
        UserError: the checkpoint is of a model of other parameters.
    """
    reader = dcp.FileSystemReader(folder)
    saved = {
        name: tuple(entry.size) for name, entry in saved_weights(reader.read_metadata()).items()
    }
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in get_model_state_dict(model).items()
        if isinstance(tensor, torch.Tensor)
    }
    remedy = "give the model the checkpoint was written from"
    for name, shape in wanted.items():
        if name not in saved:
            raise UserError(f"{folder} has no parameter {name}; {remedy}")
        if saved[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {saved[name]} in the checkpoint and {shape} in the "
                f"model; {remedy}"
            )
    for name in sorted(saved.keys() - wanted.keys()):
        raise UserError(f"{folder} has parameter {name}, which the model lacks; {remedy}")


def saved_weights(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """What the index says of every parameter, by its name in the model."""
    return {
        name.removeprefix(OF_THE_MODEL): entry
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith(OF_THE_MODEL) and isinstance(entry, TensorStorageMetadata)
    }
