"""The process that starts a worker's sandboxes, as the worker sees it; its own side is
`compass.gym.sandbox.inside.launch`."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
from importlib.resources import files

from compass.gym.sandbox.command import launch_command, sandbox_command
from compass.gym.sandbox.system_calls import filter_for

_END_SECONDS = 10.0
"""Far more than it takes to see that nobody is there any more."""


class Launcher:
    """A process that starts sandboxes of one level, and ends when this one does."""

    def __init__(self, level: str) -> None:
        """Start it. Errors: `UserError` where something that the level needs is not installed."""
        source = files("compass.gym.sandbox.inside").joinpath("launch.py").read_text("utf-8")
        command = sandbox_command(level)
        self.level = level
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                launch_command(level, source),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                start_new_session=True,
            )
        system_calls = filter_for(platform.machine())
        with contextlib.suppress(BrokenPipeError):  # if it is gone already, `launch` finds out
            self._control.send(json.dumps([command, system_calls.hex()]).encode())

    def launch(self, given: socket.socket) -> int:
        """Start a sandbox with that standard input; its process id, in the launcher's namespace.

        Errors: `OSError` when it cannot be started or the launcher is gone.
        """
        socket.send_fds(self._control, [b"!"], [given.fileno()])
        pid = int.from_bytes(self._control.recv(4), "big")
        if not pid:
            raise OSError("no process can be started")
        return pid

    def complaint(self) -> str:
        """The last line that it or a sandbox has written to stderr."""
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        said = self._process.stderr.read() or b""
        return said.decode("utf-8", "replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        """End it, and the sandboxes with it. May be repeated."""
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
