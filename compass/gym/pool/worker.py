"""The verifier worker: a process that turns (prompt, completion) into a `Score`, one at a time.

It is started by `compass.gym.pool.pool` as a fresh interpreter (never forked, so no CUDA context
and no torch), talks over one pipe, may be killed at any moment, and leaves when the pipe closes.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection

from compass.errors import UserError
from compass.gym.domains.code import CodeConfig, workshop
from compass.gym.reward import broken, import_libraries
from compass.gym.sandbox.supply import SandboxConfig
from compass.own import load_function
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, Score

Verify = Callable[[Prompt, str, bool, bool], Score]
"""(prompt, completion text, finished, thinking_open) -> Score. Importable by name: workers receive
it pickled."""

READY = "ready"
"""A worker's first message when it started well; `CannotStart` when it did not."""

_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker needs before its first job."""

    verify: Verify
    libraries: tuple[str, ...]
    """Imported before the worker reports ready, so that no time limit pays for it."""
    functions: tuple[str, ...]
    """The user's own, `path/file.py:function`: imported then too, for the same reason."""
    tokenizer_directory: str | None
    """Holds tokenizer.json; None when completions come as text."""
    stop_token_ids: tuple[int, ...]
    max_memory_bytes: int
    workshop: tuple[CodeConfig, SandboxConfig] | None
    """Where programs are run; None when no domain runs any."""
    abandon_seconds: float
    """A job that outlives this ends the process, even inside C code and with the parent gone."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One completion to score: as text, or as token ids to be decoded here."""

    prompt: Prompt
    completion: str | tuple[int, ...]
    finished: bool
    thinking_open: bool
    """The prompt as it was rendered ends inside `<think>`."""


@dataclass(frozen=True, kw_only=True)
class CannotStart:
    """The worker's set-up failed; the pool raises this to its user."""

    reason: str
    is_user_mistake: bool


def main() -> None:
    """Serve the connection whose file descriptor is the first argument."""
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the pipe or is gone


def serve(connection: Connection) -> None:
    """Set up, report, then answer every `Job` with one `Score` until the pipe closes."""
    with ExitStack() as opened:
        _serve(connection, opened)


def _serve(connection: Connection, opened: ExitStack) -> None:
    try:
        setup: WorkerSetup = connection.recv()
        _limit_memory(setup.max_memory_bytes)
        import_libraries(setup.libraries)
        for name in setup.functions:
            load_function(name)
        if setup.workshop is not None:
            opened.enter_context(workshop(*setup.workshop))
        directory = setup.tokenizer_directory
        tokenizer = None if directory is None else Tokenizer.from_dir(directory)
    except EOFError:
        raise
    except Exception as error:
        connection.send(
            CannotStart(
                reason=_describe(error) if not isinstance(error, UserError) else str(error),
                is_user_mistake=isinstance(error, UserError),
            )
        )
        return
    connection.send(READY)
    while True:
        job: Job = connection.recv()
        signal.setitimer(signal.ITIMER_REAL, setup.abandon_seconds)
        _answer(connection, job, setup, tokenizer)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(
    connection: Connection, job: Job, setup: WorkerSetup, tokenizer: Tokenizer | None
) -> None:
    """Send exactly one `Score`; whatever the verifier raises becomes an invalid one."""
    started = time.perf_counter()
    try:
        text = _text_of(job.completion, tokenizer, setup.stop_token_ids)
        score = setup.verify(job.prompt, text, job.finished, job.thinking_open)
        if not isinstance(score, Score):
            raise TypeError(f"the verifier returned {type(score).__name__}, not Score")
        connection.send(score)  # pickled whole before the first byte leaves
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        reason = f"crash: {_describe(error)}"
        connection.send(broken(reason, time.perf_counter() - started))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARACTERS]


def _limit_memory(max_bytes: int) -> None:
    # So that an answer such as 9^9^9^9 raises MemoryError here instead of emptying the machine.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _text_of(
    completion: str | Sequence[int], tokenizer: Tokenizer | None, stop_token_ids: Sequence[int]
) -> str:
    """The text of a completion, without the stop token that ended it."""
    if isinstance(completion, str):
        return completion
    assert tokenizer is not None, "token ids were submitted to a pool without a tokenizer"
    stopped = len(completion) > 0 and completion[-1] in stop_token_ids
    token_ids = completion[:-1] if stopped else completion
    return tokenizer.decode(token_ids)
