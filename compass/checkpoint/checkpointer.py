"""Saves and restores a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from compass.checkpoint.config import CheckpointConfig
from compass.checkpoint.folder import damage_anywhere, file_names, step_folders, step_of
from compass.checkpoint.tensors import read_tensors, require_same_shapes, write_tensors
from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.manifest import (
    FileDigest,
    Manifest,
    digest,
    publish_folder,
    read_manifest,
    write_durably,
    write_manifest,
)

_LOGGER = logging.getLogger(__name__)
_STATE = "state.json"


class Checkpointer:
    """Saves and restores a run in `folder`. Every method is collective: all ranks call it together,
    and an error on one is raised on all."""

    def __init__(
        self,
        folder: Path,
        topology: Topology,
        config: CheckpointConfig,
        *,
        files: Mapping[str, bytes] = {},
    ) -> None:
        """`files` go into every checkpoint: what makes it a model directory."""
        self._folder = folder
        self._topology = topology
        self._config = config
        self._files = files
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
        files = {f"rank_{self._topology.rank:05}.json": json.dumps(rank_extra).encode()}
        if self._topology.is_main:
            files |= {**self._files, _STATE: json.dumps(extra).encode()}
        try:
            self._write(step, partial, final, model, optimizer, files)
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
        own_files: Mapping[str, bytes],
    ) -> None:
        with self._raising("write", partial):
            if self._topology.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        write_tensors(partial, model, optimizer)
        with self._raising("write", partial):
            for name, content in own_files.items():
                write_durably(partial / name, content)
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
        for path in reversed(self._listing(self._folder, step_folders)):
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
        require_same_shapes(path, model)
        read_tensors(path, model, optimizer)
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
        damage = damage_anywhere(path, self._topology)
        if damage is None:
            self._verified.add(path)
        return damage

    def _digests(self, folder: Path) -> dict[str, FileDigest]:
        """Size and SHA-256 of every file; each rank hashes its share."""
        names = self._listing(folder, file_names)
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
        done = [path for path in step_folders(self._folder) if step_of(path) <= step]
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
