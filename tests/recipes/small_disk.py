"""A disk that can be full."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KILOBYTES = 4_000


@dataclass(frozen=True, kw_only=True)
class SmallDisk:
    """A folder whose room is known."""

    folder: Path
    mounted: bool
    """Whether it is a file system of its own; otherwise no file may grow beyond the room left."""

    @property
    def complaint(self) -> str:
        """What the system says when the room is taken."""
        return os.strerror(errno.ENOSPC if self.mounted else errno.EFBIG)

    @contextmanager
    def filled(self, *, leave: int) -> Iterator[None]:
        """Take all the room but `leave` bytes while the block runs."""
        if not self.mounted:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, limits[1]))
            yield
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            return
        ballast = self.folder / "ballast"
        state = os.statvfs(self.folder)
        ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))
        yield
        ballast.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A tmpfs mounted at `folder` while the block runs. Only root may mount one: for others no file
    grows beyond the room left, which fails in the same places."""
    folder.mkdir()
    size = f"size={KILOBYTES}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount).returncode == 0
    try:
        yield SmallDisk(folder=folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
