"""The folders of checkpoints: what they are called, which are whole, which one is meant."""

from __future__ import annotations

import re
from pathlib import Path

from compass.distributed import Topology
from compass.errors import UserError
from compass.manifest import DamageError, check_files, read_manifest

FOLDER = "checkpoints"
"""Where in a run's folder they are."""
_FOLDER_NAME = re.compile(r"step_(\d{6,})")


def step_of(path: Path) -> int:
    """The step a checkpoint folder was saved after."""
    match = _FOLDER_NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not a checkpoint folder"
    return int(match[1])


def step_folders(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones (`.tmp`) are not among them."""
    if not folder.exists():
        return []
    return sorted((p for p in folder.iterdir() if _FOLDER_NAME.fullmatch(p.name)), key=step_of)


def file_names(folder: Path) -> list[str]:
    """Of what lies in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def damage_of(path: Path, share: int = 0, num_shares: int = 1) -> str | None:
    """What is wrong with one of `num_shares` shares of a checkpoint's files; None: nothing."""
    try:
        check_files(path, read_manifest(path), share=share, num_shares=num_shares)
    except DamageError as e:
        return str(e)
    except OSError as e:
        return f"{e.filename} cannot be read: {e.strerror}"
    return None


def damage_anywhere(path: Path, topology: Topology) -> str | None:
    """What is wrong with a checkpoint; each rank looks at its share of the files. Collective."""
    own = damage_of(path, topology.rank, topology.world_size)
    return next((d for d in topology.all_gather_object(own) if d is not None), None)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, whole or not, also under another name."""
    return bool(_FOLDER_NAME.fullmatch(path.name)) or (path / "manifest.json").is_file()


def holds_checkpoints(path: Path) -> bool:
    """Whether a folder is that of a run with checkpoints, be they whole or not."""
    return bool(step_folders(path / FOLDER))


def find_checkpoint(place: Path) -> Path:
    """The checkpoint that `place` is, or the newest of the run whose folder it is.

    Raises:
        UserError: there is none.
    """
    if not place.is_dir():
        raise UserError(f"{place} is no folder: give that of a run, or one of its checkpoints")
    if is_checkpoint(place):
        return place
    if place.suffix == ".tmp" and _FOLDER_NAME.fullmatch(place.stem):
        raise UserError(f"{place} was never finished: give an earlier checkpoint")
    checkpoints = step_folders(place / FOLDER)
    if not checkpoints:
        raise UserError(
            f"{place} holds no checkpoint: give the folder of a run that has saved one "
            "(checkpoint.interval), or a checkpoint"
        )
    return checkpoints[-1]
