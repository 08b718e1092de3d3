"""A folder's manifest: the size and SHA-256 of every file, and files that survive a power cut or a
full disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from compass.errors import UserError

_FILE = "manifest.json"
REMEDY = "choose a folder that exists, is writable and has room"
"""For whoever gives a place that cannot be written to."""


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """What a file must be to count as undamaged. Built by `digest`."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds. Built by the writer of the folder and by `read_manifest`."""

    step: int
    world_size: int
    files: Mapping[str, FileDigest]


class DamageError(Exception):
    """The folder is not what was written. The message names the file and what is wrong."""


def digest(path: Path) -> FileDigest:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(size=path.stat().st_size, sha256=sha256)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` durably; it carries its own SHA-256."""
    content = json.dumps(asdict(manifest), sort_keys=True)
    sealed = {"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content}
    write_durably(folder / _FILE, json.dumps(sealed).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`.

    Raises:
        DamageError: it is missing, or not what was written.
    """
    path = folder / _FILE
    if not path.exists():
        raise DamageError(f"{path} is missing")
    try:
        sealed = json.loads(path.read_bytes())
        content = sealed["content"].encode()
        intact = hashlib.sha256(content).hexdigest() == sealed["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise DamageError(f"{path} is not a manifest") from e
    if not intact:
        raise DamageError(f"{path} does not match its own SHA-256")
    fields = json.loads(content)
    files = {name: FileDigest(**entry) for name, entry in fields.pop("files").items()}
    return Manifest(**fields, files=files)


def check_files(folder: Path, manifest: Manifest, *, share: int, num_shares: int) -> None:
    """Compare every `num_shares`-th file from `share` on with the manifest.

    Raises:
        DamageError: a file is missing, of another size, or of another content.
    """
    for name in sorted(manifest.files)[share::num_shares]:
        path, expected = folder / name, manifest.files[name]
        if not path.exists():
            raise DamageError(f"{path} is missing")
        size = path.stat().st_size
        if size != expected.size:
            raise DamageError(f"{path} has {size} bytes instead of {expected.size}")
        if digest(path) != expected:
            raise DamageError(f"{path} does not match its SHA-256 in the manifest")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole, as it was before, or absent.

    Raises:
        UserError: it cannot be written (no space, no permission, no such folder).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_durably(partial, text.encode())
        partial.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):  # it may be the folder that is not there
            partial.unlink()
        raise UserError(f"cannot write {path}: {e.strerror}; {REMEDY}") from e


def publish_folder(partial: Path, final: Path) -> None:
    """Rename a complete folder into place, durably; a folder of that name is replaced."""
    _sync_folder(partial)
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
