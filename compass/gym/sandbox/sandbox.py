"""One sandbox as its worker sees it: a socket to a process that is not believed."""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import CodeType
from typing import Self

from compass.gym.sandbox.command import installed_packages, readable
from compass.gym.sandbox.inside import server
from compass.gym.sandbox.launcher import Launcher

_MODULES = ("server", "calls", "literals", "confine")
_HEAD_BYTES = 5
_GONE = "it ended its sandbox"


class OverError(Exception):
    """The sandbox is of no more use, and why."""


class OutOfTimeError(OverError):
    """Because the time is up."""

    def __init__(self) -> None:
        super().__init__("out of time")


class BrokenError(OverError):
    """Because it is gone, or says what it cannot. Its program has done that, or this machine."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of a test ended."""

    code: int
    """Its exit code, or minus the signal that killed it."""
    note: str
    """The last line that it wrote to stderr."""
    output: bytes
    """What it wrote to stdout."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Of a frame. Whoever sent it, there is something to make of every text."""
        size = int.from_bytes(content[4:6], "big")
        note = content[6 : 6 + size].decode("utf-8", "replace").strip().rpartition("\n")[2]
        code = int.from_bytes(content[:4], "big", signed=True)
        return cls(code=code, note=note, output=content[6 + size :])


class Sandbox:
    """A sandbox that starts, and then serves one program."""

    def __init__(
        self, launcher: Launcher, limits: Sequence[tuple[str, int]], max_frame_bytes: int
    ) -> None:
        """Start one; `wait_until_started` before anything else. `limits`: of `resource`, by name.

        Errors: `OSError` when it cannot be started.
        """
        self._isolated = launcher.level == "full"
        self._max_frame_bytes = max_frame_bytes
        self._first: int | None = None
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._pid = launcher.launch(theirs)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # If it is gone already, `wait_until_started` finds out.
            self._connection.sendall(_opening(launcher.level, tuple(limits)))

    def wait_until_started(self, deadline: float) -> None:
        """Wait for its first word. Errors: `OverError`, also at `deadline` (monotonic seconds)."""
        self._limit_time(deadline)
        try:
            message, handles, _, _ = socket.recv_fds(
                self._connection, 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise BrokenError(f"it does not start: {error}") from None
        if message != server.HELLO:
            raise BrokenError("it ended before it had started")
        (self._first,) = handles

    def send(self, kind: bytes, content: bytes, deadline: float) -> None:
        """Write one frame. Errors: `OverError`, also at `deadline`."""
        self._limit_time(deadline)
        try:
            self._connection.sendall(kind + len(content).to_bytes(4, "big") + content)
        except TimeoutError:
            raise OutOfTimeError from None
        except OSError:
            raise BrokenError(_GONE) from None

    def receive(self, deadline: float) -> tuple[bytes, bytes]:
        """Read one frame. Errors: `OverError`, also at `deadline`."""
        head = self._read(_HEAD_BYTES, deadline)
        size = int.from_bytes(head[1:], "big")
        if size > self._max_frame_bytes:
            raise BrokenError(f"a frame of {size} bytes")
        content = self._read(size, deadline)
        if head[:1] == server.TROUBLE:
            raise BrokenError(f"no process in the sandbox: {content.decode('utf-8', 'replace')}")
        return head[:1], content

    def kill(self) -> None:
        """End everything in it, soon; `gone` tells when. May be repeated.

        In a process namespace all end with the first process, and those outside that wait for it
        end after it, each waited for by its parent.
        """
        if self._first is None:
            self._connection.close()  # it is starting, and will find nobody
        elif not self.gone():
            if self._isolated:
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            else:
                os.killpg(self._pid, signal.SIGKILL)

    def gone(self, seconds: float = 0) -> bool:
        """Whether its first process has ended, waiting at most so long."""
        if self._first is None:
            return True
        return bool(select.select([self._first], [], [], seconds)[0])

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()
        if self._first is not None:
            os.close(self._first)
            self._first = None

    def _read(self, size: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._limit_time(deadline)
            try:
                part = self._connection.recv(min(size - len(content), 1 << 20))
            except TimeoutError:
                raise OutOfTimeError from None
            except OSError:
                raise BrokenError(_GONE) from None
            if not part:
                raise BrokenError(_GONE)
            content += part
        return bytes(content)

    def _limit_time(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise OutOfTimeError
        self._connection.settimeout(left)


@cache
def _opening(level: str, limits: tuple[tuple[str, int], ...]) -> bytes:
    """The first thing that is written into a sandbox: its server's code, and what to obey."""
    opening = marshal.dumps(
        {
            "modules": {name: marshal.dumps(_code(name)) for name in _MODULES},
            "limits": dict(limits),
            "path": installed_packages(),
            "confine": {"full": None, "files": readable(), "none": []}[level],
        }
    )
    return len(opening).to_bytes(4, "big") + opening


def _code(name: str) -> CodeType:
    file = files("compass.gym.sandbox.inside").joinpath(f"{name}.py")
    return compile(file.read_text(encoding="utf-8"), f"<sandbox {name}>", "exec", optimize=2)
