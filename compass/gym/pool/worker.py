"""The verifier worker: a process that turns (prompt, completion) into a `Score`, one at a time, and
the scores of a whole group into those that its rewards make of them.

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
from compass.gym.rewards.call import WholeGroup
from compass.gym.sandbox.supply import SandboxConfig
from compass.own import load_function
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, Score

Verify = Callable[[Prompt, str, bool, bool], Score]
"""(prompt, completion text, finished, thinking_open) -> Score. Importable by name: workers receive
it pickled."""

JudgeGroup = Callable[[WholeGroup, Sequence[Score]], Sequence[Score]]
"""(all completions of a prompt, their scores) -> their scores with what looks at all of them."""

READY = "ready"
"""A worker's first message when it started well; `CannotStart` when it did not."""

_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker needs before its first job."""

    verify: Verify
    judge_group: JudgeGroup | None
    """None: no reward looks at groups."""
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
class GroupJob:
    """All completions of a prompt, scored one by one, for the rewards that look at the group."""

    prompt: Prompt
    completions: tuple[str | tuple[int, ...], ...]
    """Each as text, or as token ids to be decoded here."""
    scores: tuple[Score, ...]
    step: int
    """Of the policy that wrote them."""


Result = Score | tuple[Score, ...]
"""What a worker sends back: for a `Job` and for a `GroupJob`."""


def broken_result(job: Job | GroupJob, reason: str, seconds: float) -> Result:
    """What comes of a job that was never answered. A score that was invalid before keeps its
    reason."""
    if isinstance(job, Job):
        return broken(reason, seconds)
    each = seconds / len(job.scores)
    return tuple(broken(reason, s.seconds + each) if s.valid else s for s in job.scores)


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
    """Set up, report, then answer every job with one `Result` until the pipe closes."""
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
        job: Job | GroupJob = connection.recv()
        signal.setitimer(signal.ITIMER_REAL, setup.abandon_seconds)
        _answer(connection, job, setup, tokenizer)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(
    connection: Connection, job: Job | GroupJob, setup: WorkerSetup, tokenizer: Tokenizer | None
) -> None:
    """Send exactly one `Result`; whatever the verifier raises becomes an invalid one."""
    started = time.perf_counter()
    try:
        connection.send(_result(job, setup, tokenizer))  # pickled whole before the first byte
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        reason = f"crash: {_describe(error)}"
        connection.send(broken_result(job, reason, time.perf_counter() - started))


def _result(job: Job | GroupJob, setup: WorkerSetup, tokenizer: Tokenizer | None) -> Result:
    if isinstance(job, GroupJob):
        assert setup.judge_group is not None, "a group was submitted, and no reward looks at one"
        return tuple(setup.judge_group(_whole_group(job, setup, tokenizer), job.scores))
    text = _text_of(job.completion, tokenizer, setup.stop_token_ids)
    score = setup.verify(job.prompt, text, job.finished, job.thinking_open)
    if not isinstance(score, Score):
        raise TypeError(f"the verifier returned {type(score).__name__}, not Score")
    return score


def _whole_group(job: GroupJob, setup: WorkerSetup, tokenizer: Tokenizer | None) -> WholeGroup:
    token_ids = [c for c in job.completions if not isinstance(c, str)]
    return WholeGroup(
        prompt=job.prompt,
        completions=[_text_of(c, tokenizer, setup.stop_token_ids) for c in job.completions],
        completion_ids=token_ids if len(token_ids) == len(job.completions) else None,
        step=job.step,
    )


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
