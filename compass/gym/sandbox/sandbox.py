"""One sandbox as its worker sees it: a socket to a process that is not believed."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import CodeType
from typing import Self

from compass.gym.sandbox.command import command_of, installed_packages, readable
from compass.gym.sandbox.inside import server

_MODULES = ("server", "calls", "literals", "confine")
_HEAD_BYTES = 5
_END_SECONDS = 10.0
"""Far more than the kernel needs to end a namespace of a few processes."""
_OUT_OF_TIME, _GONE = "out of time", "it ended its sandbox"


class OverError(Exception):
    """The time is up, or the sandbox is gone or says what it cannot: it is of no more use."""


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

    def __init__(self, level: str, limits: Sequence[tuple[str, int]], max_frame_bytes: int) -> None:
        """Start one; `wait_until_started` before anything else. `limits`: of `resource`, by name.

        Errors: as of `command_of`; `OSError` when no process can be started.
        """
        self._level = level
        self._max_frame_bytes = max_frame_bytes
        self._first: int | None = None
        self._complaint = b""
        self._connection, theirs = socket.socketpair()
        self._info, info = os.pipe()
        try:
            self._process = subprocess.Popen(
                command_of(level, info),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[info],
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(info)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # If it is gone already, `wait_until_started` finds out.
            self._connection.sendall(_opening(level, tuple(limits)))

    def wait_until_started(self, deadline: float) -> None:
        """Wait for its first word. Errors: `OverError`, also at `deadline` (monotonic seconds)."""
        kind, _ = self.receive(deadline)
        if kind != server.HELLO:
            raise OverError(f"it said {kind!r} first")
        os.set_blocking(self._info, False)
        with contextlib.suppress(BlockingIOError):
            if info := os.read(self._info, 4096):
                self._first = os.pidfd_open(json.loads(info)["child-pid"])

    def send(self, kind: bytes, content: bytes, deadline: float) -> None:
        """Write one frame. Errors: `OverError`, also at `deadline`."""
        self._limit_time(deadline)
        try:
            self._connection.sendall(kind + len(content).to_bytes(4, "big") + content)
        except TimeoutError:
            raise OverError(_OUT_OF_TIME) from None
        except OSError:
            raise OverError(_GONE) from None

    def receive(self, deadline: float) -> tuple[bytes, bytes]:
        """Read one frame. Errors: `OverError`, also at `deadline`."""
        head = self._read(_HEAD_BYTES, deadline)
        size = int.from_bytes(head[1:], "big")
        if size > self._max_frame_bytes:
            raise OverError(f"a frame of {size} bytes")
        return head[:1], self._read(size, deadline)

    def complaint(self) -> str:
        """The last line that it wrote because it could not start; it is ended first."""
        self.end()
        return self._complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]

    def kill(self) -> None:
        """End everything in it, soon; `gone` tells when.

        In a process namespace all end with the first process, and those outside that wait for it
        end after it, each waited for by its parent.
        """
        if self._process.poll() is not None:
            return
        if self._first is not None:
            signal.pidfd_send_signal(self._first, signal.SIGKILL)
        elif self._level == "full":
            self._connection.close()  # it is starting, and will find nobody
        else:
            os.killpg(self._process.pid, signal.SIGKILL)

    def gone(self, seconds: float = 0) -> bool:
        """Whether all of it has ended, waiting at most so long; then nothing of it is open."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if self._process.stderr is not None and not self._process.stderr.closed:
            self._connection.close()
            os.set_blocking(self._process.stderr.fileno(), False)
            self._complaint = self._process.stderr.read() or b""
            self._process.stderr.close()
            for fd in (self._info, self._first):
                if fd is not None:
                    os.close(fd)
        return True

    def end(self) -> None:
        """`kill` it and wait until it is `gone`. May be repeated."""
        self.kill()
        if not self.gone(_END_SECONDS):
            os.killpg(self._process.pid, signal.SIGKILL)
            self.gone(_END_SECONDS)

    def _read(self, size: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._limit_time(deadline)
            try:
                part = self._connection.recv(min(size - len(content), 1 << 20))
            except TimeoutError:
                raise OverError(_OUT_OF_TIME) from None
            except OSError:
                raise OverError(_GONE) from None
            if not part:
                raise OverError(_GONE)
            content += part
        return bytes(content)

    def _limit_time(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise OverError(_OUT_OF_TIME)
        self._connection.settimeout(left)


@cache
def _opening(level: str, limits: tuple[tuple[str, int], ...]) -> bytes:
    """The first thing that is written into a sandbox: its server's code, and what to obey."""
    opening = marshal.dumps(
        {
            "modules": {name: _code(name) for name in _MODULES},
            "limits": dict(limits),
            "path": installed_packages(),
            "confine": {"full": None, "files": readable(), "none": []}[level],
        }
    )
    return len(opening).to_bytes(4, "big") + opening


def _code(name: str) -> CodeType:
    file = files("compass.gym.sandbox.inside").joinpath(f"{name}.py")
    return compile(file.read_text(encoding="utf-8"), f"<sandbox {name}>", "exec", optimize=2)
