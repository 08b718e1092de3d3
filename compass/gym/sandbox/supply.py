"""Started sandboxes, waiting for programs: each serves one and is thrown away."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from compass.errors import UserError
from compass.gym.sandbox.command import LEVELS
from compass.gym.sandbox.launcher import Launcher
from compass.gym.sandbox.sandbox import OverError, Sandbox

_START_SECONDS = 20.0
"""Far more than a start takes on a busy machine (0.02 s on a quiet one)."""
_END_SECONDS = 10.0
"""Far more than the kernel needs to end a namespace of a few processes."""
_NUM_OPEN_FILES = 32


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """How programs are isolated and limited (docs/security.md)."""

    level: str = "full"
    """`full`: namespaces by bubblewrap. `files`: Landlock, which protects files alone. `none`:
    limits alone. One that cannot be had here ends the run at its start."""
    test_seconds: float = 4.0
    """Of one test, by the clock and of the CPU; what takes longer has failed."""
    program_seconds: float = 30.0
    """Of all tests of a program together."""
    memory_mb: int = 1024
    """Address space of each process of a test."""
    max_processes: int = 8
    """Processes and threads of a program at a time. Below level full the kernel counts all of the
    user's, so there it is those at the start, and a thousand."""
    max_output_mb: int = 16
    """Of a test's output, of any file it writes, and of what a call returns."""
    num_ready: int = 2
    """Started sandboxes that wait in each worker."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(f"level is {self.level!r}; choose one of {', '.join(LEVELS)}")
        for name in ("test_seconds", "program_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("memory_mb", "max_processes", "max_output_mb", "num_ready"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Sandboxes:
    """Keeps `num_ready` started sandboxes while it is open."""

    def __init__(self, config: SandboxConfig) -> None:
        """Start them, and wait for the first: a level that cannot be had is found here.

        Errors: `UserError`, with what to install or change.
        """
        self.config = config
        self._waiting: deque[Sandbox] = deque()
        self._dying: list[Sandbox] = []
        self._limits = _limits(config)
        self._launcher = Launcher(config.level)
        try:
            self.discard(self.take())
        except RuntimeError as error:
            self.close()
            raise UserError(_refusal(config.level, str(error))) from None

    def take(self) -> Sandbox:
        """A started sandbox, to be `discard`ed. Another one starts in its place.

        Errors: `RuntimeError` when it does not start.
        """
        self._bury()
        try:
            self._refill()
            sandbox = self._waiting.popleft()
            self._refill()
        except OSError as error:
            raise RuntimeError(f"no sandbox: {self._launcher.complaint() or error}") from None
        try:
            sandbox.wait_until_started(time.monotonic() + _START_SECONDS)
        except OverError as error:
            self.discard(sandbox)
            raise RuntimeError(f"no sandbox: {self._launcher.complaint() or error}") from None
        return sandbox

    def discard(self, sandbox: Sandbox) -> None:
        """End one that was taken; nobody waits for it."""
        sandbox.kill()
        self._dying.append(sandbox)

    def close(self) -> None:
        """End all of them. May be repeated."""
        while self._waiting:
            self.discard(self._waiting.popleft())
        self._launcher.close()
        for sandbox in self._dying:
            sandbox.gone(_END_SECONDS)
        self._bury()

    def _bury(self) -> None:
        ended = [sandbox for sandbox in self._dying if sandbox.gone()]
        for sandbox in ended:
            sandbox.close()
        self._dying = [sandbox for sandbox in self._dying if sandbox not in ended]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _refill(self) -> None:
        while len(self._waiting) < self.config.num_ready:
            self._waiting.append(self._start())

    def _start(self) -> Sandbox:
        most = 2 * self._limits["FSIZE"]
        return Sandbox(self._launcher, tuple(self._limits.items()), most)


def _limits(config: SandboxConfig) -> dict[str, int]:
    """By the names of `resource`."""
    isolated = config.level == "full"
    return {
        "AS": config.memory_mb * 2**20,
        # The first process of the sandbox counts too.
        "NPROC": config.max_processes + (1 if isolated else 1000 + _num_tasks_of_this_user()),
        "NOFILE": _NUM_OPEN_FILES,
        "CORE": 0,
        "CPU": math.ceil(config.test_seconds) + 1,  # the clock comes first
        "FSIZE": config.max_output_mb * 2**20,
    }


def _num_tasks_of_this_user() -> int:
    number = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if folder.stat().st_uid == os.geteuid():
                number += len(os.listdir(folder / "task"))
    return number


def _refusal(level: str, complaint: str) -> str:
    remedy = {
        "full": "allow unprivileged user namespaces (docs/security.md), or choose a lower level",
        "files": "run on Linux 5.13 or newer with landlock among its security modules, and install "
        "landlock==1.0.0.dev5; or choose `none` for programs that you trust",
        "none": "Python does not start in a process of its own",
    }[level]
    return f"gym.sandbox.level={level} cannot be had here: {complaint}; {remedy}"
