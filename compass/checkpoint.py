"""Checkpoints: complete or not there, verified before use, the last good one found by itself.

A checkpoint is the folder `step_000010/` with the weights and optimizer state in the format of
torch.distributed.checkpoint (each rank writes its shards), `state.json` and `rank_00000.json` for
everything else, and `manifest.json` with the size and SHA-256 of every file. It is written as
`step_000010.tmp/`, flushed to disk, and renamed when complete, so a crash leaves the previous one.
With several machines the folder must be on a shared file system.

Resuming at the same world size is bit-exact. At another world size or expert-parallel degree,
weights and optimizer state are resharded without loss, but sums over ranks run in another order.

The manifest tells damage, not origin: torch.distributed.checkpoint keeps its index as a pickle, so
load only checkpoints that you or your own runs wrote. Weights from others come in as safetensors.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from compass.checkpoint_config import CheckpointConfig
from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.manifest import (
    DamageError,
    FileDigest,
    Manifest,
    check_files,
    digest,
    publish_folder,
    read_manifest,
    write_durably,
    write_manifest,
)

_LOGGER = logging.getLogger(__name__)
_FOLDER_NAME = re.compile(r"step_(\d{6,})")
_STATE = "state.json"


class Checkpointer:
    """Saves and restores a run in `folder`. Every method is collective: all ranks call it together,
    and an error on one is raised on all."""

    def __init__(self, folder: Path, topology: Topology, config: CheckpointConfig) -> None:
        self._folder = folder
        self._topology = topology
        self._config = config
        self._verified: set[Path] = set()

    def due(self, step: int, *, is_last: bool) -> bool:
        """Whether `step` is one to save after, `is_last` where it is this program's last."""
        interval = self._config.interval
        return interval > 0 and (is_last or step % interval == 0)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Any],
        *,
        rank_extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the checkpoint of `step`, then delete those beyond `keep_last`.

        Args:
            extra: JSON values that are the same on every rank (counters, sampler state). Keys that
                are not strings come back as strings.
            rank_extra: JSON values of this rank alone, for `load_rank_extra`.

        Raises:
            UserError: the folder cannot be written (no space, no permission).
        """
        final = self._folder / f"step_{step:06}"
        partial = final.with_suffix(".tmp")
        texts = {f"rank_{self._topology.rank:05}.json": json.dumps(rank_extra)}
        if self._topology.is_main:
            texts[_STATE] = json.dumps(extra)
        try:
            self._write(step, partial, final, model, optimizer, texts)
        except UserError:
            if self._topology.is_main:  # what is half written may be what fills the disk
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self._verified.discard(final)
        return final

    def _write(
        self,
        step: int,
        partial: Path,
        final: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        texts: Mapping[str, str],
    ) -> None:
        with self._raising("write", partial):
            if self._topology.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        _write_tensors(partial, model, optimizer)
        with self._raising("write", partial):
            for name, text in texts.items():
                write_durably(partial / name, text)
        files = self._digests(partial)
        with self._raising("write", partial):
            if self._topology.is_main:
                world_size = self._topology.world_size
                manifest = Manifest(step=step, world_size=world_size, files=files)
                write_manifest(partial, manifest)
                publish_folder(partial, final)
                self._prune(step)

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None when there is none at all. A damaged one is passed over
        with a warning that says what is wrong.

        Raises:
            UserError: there are checkpoints, but every one is damaged.
        """
        damages = []
        for path in reversed(self._listing(self._folder, _step_folders)):
            damage = self._verify(path)
            if damage is None:
                return path
            damages.append(damage)
            if self._topology.is_main:
                _LOGGER.warning("passing over a damaged checkpoint: %s", damage)
        if damages:
            raise UserError(
                f"no whole checkpoint in {self._folder}: {'; '.join(damages)}; "
                "restore one from a copy, or remove the folder to start over"
            )
        return None

    def extra(self, path: Path) -> dict[str, Any]:
        """The `extra` that was saved, without touching model or optimizer.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        self._require_whole(path)
        return json.loads((path / _STATE).read_text())

    def load(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Restore `model` and `optimizer` in place and return the `extra` that was saved.

        Raises:
            UserError: the checkpoint is missing, damaged, or of a model of other sizes.
        """
        self._require_whole(path)
        _require_same_shapes(path, model)
        _read_tensors(path, model, optimizer)
        return json.loads((path / _STATE).read_text())

    def load_rank_extra(self, path: Path) -> dict[str, Any] | None:
        """What this rank saved as `rank_extra`.

        Raises:
            UserError: the checkpoint was written by another number of ranks.
        """
        self._require_whole(path)
        saved_world_size = read_manifest(path).world_size
        if saved_world_size != self._topology.world_size:
            raise UserError(
                f"{path} holds the state of {saved_world_size} ranks, not of "
                f"{self._topology.world_size}; resume with --nproc-per-node {saved_world_size}"
            )
        return json.loads((path / f"rank_{self._topology.rank:05}.json").read_text())

    def _require_whole(self, path: Path) -> None:
        damage = self._verify(path)
        if damage is not None:
            raise UserError(f"{damage}; resume from another checkpoint")

    def _verify(self, path: Path) -> str | None:
        """What is wrong with the checkpoint, the same on every rank; each hashes its share."""
        if path in self._verified:
            return None
        own = _damage(path, self._topology.rank, self._topology.world_size)
        found = [damage for damage in self._topology.all_gather_object(own) if damage is not None]
        if found:
            return found[0]
        self._verified.add(path)
        return None

    def _digests(self, folder: Path) -> dict[str, FileDigest]:
        """Size and SHA-256 of every file; each rank hashes its share."""
        names = self._listing(folder, _file_names)
        own: dict[str, FileDigest] = {}
        with self._raising("read", folder):
            for name in names[self._topology.rank :: self._topology.world_size]:
                own[name] = digest(folder / name)
        shares = self._topology.all_gather_object(own)
        return {name: entry for share in shares for name, entry in share.items()}

    def _listing(self, folder: Path, list_folder: Callable[[Path], list[Any]]) -> list[Any]:
        """The main rank's view of a folder: network file systems show others an older one."""
        seen = []
        with self._raising("read", folder):
            if self._topology.is_main:
                seen = list_folder(folder)
        return self._topology.all_gather_object(seen)[0]

    def _prune(self, step: int) -> None:
        done = [path for path in _step_folders(self._folder) if step_of(path) <= step]
        for path in done[: -self._config.keep_last]:
            shutil.rmtree(path)
        for path in self._folder.glob("step_*.tmp"):  # of a run that was killed while it wrote
            shutil.rmtree(path)

    @contextmanager
    def _raising(self, verb: str, path: Path) -> Iterator[None]:
        """An `OSError` inside the block on any rank is a `UserError` on all."""
        with raised_together(self._topology):
            try:
                yield
            except OSError as e:
                raise UserError(f"cannot {verb} the checkpoint {path}: {e.strerror}") from e


class Stateful(Protocol):
    """A part of a run that goes on from a checkpoint where it was; its state is JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def restore(
    checkpointer: Checkpointer,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, Stateful],
) -> int:
    """Continue from the newest whole checkpoint, if there is one; returns the last finished step,
    which was saved as `step` beside the state of each part.

    Raises:
        UserError: there is a checkpoint, but not of this run.
    """
    path = checkpointer.latest()
    if path is None:
        return 0
    extra = checkpointer.extra(path)
    for name, part in states.items():  # before the tensors: these may refuse
        if name not in extra:
            raise UserError(
                f"{path} has no state of {name!r}: another version wrote it; resume with that one"
            )
        part.load_state_dict(extra[name])
    checkpointer.load(path, model, optimizer)
    return extra["step"]


def step_of(path: Path) -> int:
    """The step a checkpoint folder was saved after."""
    match = _FOLDER_NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not a checkpoint folder"
    return int(match[1])


def _step_folders(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones (`.tmp`) are not among them."""
    if not folder.exists():
        return []
    return sorted((p for p in folder.iterdir() if _FOLDER_NAME.fullmatch(p.name)), key=step_of)


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _damage(path: Path, share: int, num_shares: int) -> str | None:
    try:
        check_files(path, read_manifest(path), share=share, num_shares=num_shares)
    except DamageError as e:
        return str(e)
    except OSError as e:
        return f"{e.filename} cannot be read: {e.strerror}"
    return None


def _write_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
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


def _read_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
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


def _require_same_shapes(folder: Path, model: nn.Module) -> None:
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    saved = {
        name.removeprefix("model."): tuple(entry.size)
        for name, entry in metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in get_model_state_dict(model).items()
        if isinstance(tensor, torch.Tensor)
    }
    remedy = "resume with the model the checkpoint was written from"
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
