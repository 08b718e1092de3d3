"""A worker process as its parent sees it: a fresh interpreter, killed with its children."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from compass.gym.pool.worker import WorkerSetup

_COMMAND = (
    "import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]; "
    "from compass.gym.pool.worker import main; main()"
)
"""A worker outlives the wish that the run end, whoever is sent the signal: the step at hand is
still to be scored. It leaves when its pipe closes, and is ended by SIGKILL."""


class WorkerProcess:
    """The process and our end of its pipe."""

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self.connection = connection
        """Carries `Job`s out, and `READY`, `CannotStart` or `Score`s in."""

    @classmethod
    def start(cls, setup: WorkerSetup) -> Self:
        """Start an interpreter with this process's import path and hand it `setup`.

        Not `multiprocessing.Process`: forking would copy a CUDA context and threads mid-lock, and
        spawning would import the recipe, and torch with it, once more in every worker.
        """
        ours, theirs = multiprocessing.Pipe()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            # A worker scores one answer at a time: thread pools of numpy would only cost memory.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a verifier that prints would tear the console line
            start_new_session=True,  # its own group: Ctrl-C is ours, and kill takes its children
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.send(setup)  # if it is dead already, whoever reads its pipe learns of it
        return cls(process, ours)

    def kill(self) -> str:
        """End the process and whatever it started; returns how it ended. May be repeated."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.connection.close()
        code = self._process.wait()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"
