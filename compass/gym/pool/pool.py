"""Scoring in killable processes, beside generation.

A completion is submitted when it ends and scored while others still decode; a verifier that
hangs or dies costs its own job and nothing else. One thread of the parent feeds the workers,
keeps their time limits and replaces the dead; it sleeps in `connection.wait` when there is
nothing to do.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from compass.errors import UserError
from compass.gym.domains.code import CodeConfig
from compass.gym.pool.worker import (
    READY,
    CannotStart,
    GroupJob,
    Job,
    Result,
    Verify,
    WorkerSetup,
    broken_result,
)
from compass.gym.pool.worker_process import WorkerProcess
from compass.gym.reward import DOMAINS, domain_named, libraries_of, score
from compass.gym.rewards.call import takes_groups
from compass.gym.rewards.config import RewardConfig, named_domains
from compass.gym.rewards.scorer import Scorer, group_rewards
from compass.gym.sandbox.supply import SandboxConfig
from compass.types import Prompt, Score


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The verifier processes of one rank."""

    num_workers: int = 2
    """Processes that score at the same time."""
    timeout_seconds: float = 5.0
    """A verifier that runs longer than this is killed and its rollout is invalid, a function that
    looks at a group longer than this, and all of the group are. Counted from when a worker starts
    the job, not from when it was submitted."""
    max_pending: int = 4096
    """Submissions not scored yet; `submit` waits when there are this many."""
    max_memory_gb: float = 4.0
    """Address space of one worker; a verifier that wants more fails and its rollout is invalid."""
    startup_seconds: float = 120.0
    """A worker that is not ready after this long is an error: it imports its verifiers first."""
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    """Functions of your own, each a table `[gym.rewards.NAME]` (docs/gym.md)."""
    right_above: float = 0.5
    """A reward of your own that gives the verdict says right with a value above this."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    code: CodeConfig = field(default_factory=CodeConfig)

    def __post_init__(self) -> None:
        for name in ("num_workers", "max_pending"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("timeout_seconds", "max_memory_gb", "startup_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(kw_only=True, eq=False)
class _Submission:
    key: Hashable
    job: Job | GroupJob


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A process and what it is doing."""

    process: WorkerProcess
    since: float
    """Monotonic time at which it was started, or given its present submission."""
    ready: bool = False
    submission: _Submission | None = None

    @property
    def connection(self) -> Connection:
        return self.process.connection

    @property
    def idle(self) -> bool:
        return self.ready and self.submission is None


class VerifierPool:
    """Submit completions, collect scores; every submission comes back exactly once.

    Rewards that look at whole groups come second: `submit_group` takes all completions of a prompt
    with their scores, and `poll_groups` gives them back with those rewards.

    A verdict, or `valid=False` with the reason "timeout after 5 s" or "crash: ...". Methods are
    for one thread of the caller. Errors: `UserError` or `RuntimeError`, from the constructor when
    workers cannot start, from any method when a replacement cannot.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        domains: Collection[str] = (),
        tokenizer_directory: str | Path | None = None,
        stop_token_ids: Sequence[int] = (),
        verify: Verify | None = None,
    ) -> None:
        """Start the workers and wait until they are ready.

        `domains`: those whose verifiers are imported before the first job. `tokenizer_directory`
        (with tokenizer.json) and `stop_token_ids` are needed for `submit`, not `submit_text`.
        """
        self._config = config
        of_rewards = named_domains(config.rewards)
        ours = [name for name in domains if name in DOMAINS or name not in of_rewards]
        self._sandboxed = {name for name in ours if domain_named(name).sandboxed}
        scorer = Scorer(rewards=config.rewards, right_above=config.right_above)
        self._rewards = {} if verify else config.rewards
        looks_at_groups = any(takes_groups(r.fn) for r in self._rewards.values())
        self._setup = WorkerSetup(
            verify=verify or (scorer if config.rewards else score),
            judge_group=scorer.of_group if looks_at_groups else None,
            libraries=libraries_of(ours),
            functions=tuple(r.fn for r in self._rewards.values()),
            tokenizer_directory=None if tokenizer_directory is None else str(tokenizer_directory),
            stop_token_ids=tuple(stop_token_ids),
            max_memory_bytes=int(config.max_memory_gb * 2**30),
            workshop=(config.code, config.sandbox) if self._sandboxed else None,
            abandon_seconds=2 * max(map(self._seconds, [*domains, ""])) + 1,
        )
        self._changed = threading.Condition()
        self._pending: deque[_Submission] = deque()
        self._scored: list[tuple[Hashable, Score]] = []
        self._scored_groups: list[tuple[Hashable, tuple[Score, ...]]] = []
        self._num_unscored = 0
        self._failure: Exception | None = None
        self._num_ready = 0
        self._closing = False
        self._awake = False
        self._wake_receiver, self._wake_sender = multiprocessing.Pipe(duplex=False)
        self._workers = [self._start_worker() for _ in range(config.num_workers)]
        self._supervisor = threading.Thread(
            target=self._supervise, name="verifier-pool", daemon=True
        )
        self._supervisor.start()
        self._wait_until_ready()

    # The caller's side.

    def submit(
        self,
        key: Hashable,
        prompt: Prompt,
        token_ids: Sequence[int],
        *,
        finished: bool,
        thinking_open: bool = False,
    ) -> None:
        """Queue a completion given as token ids; they are decoded in the worker.

        Returns at once unless `max_pending` are unscored. `finished`: it ended with a stop token,
        which is then not part of the text that is scored. `thinking_open`: the prompt as it was
        rendered ends inside `<think>`.
        """
        job = Job(
            prompt=prompt,
            completion=tuple(token_ids),
            finished=finished,
            thinking_open=thinking_open,
        )
        self._enqueue(key, job)

    def submit_text(
        self,
        key: Hashable,
        prompt: Prompt,
        text: str,
        *,
        finished: bool,
        thinking_open: bool = False,
    ) -> None:
        """Queue a completion given as text."""
        self._enqueue(
            key, Job(prompt=prompt, completion=text, finished=finished, thinking_open=thinking_open)
        )

    def looks_at_groups(self, domain: str) -> bool:
        """Whether prompts of the domain have rewards that are asked with `submit_group`."""
        return bool(group_rewards(domain, self._rewards))

    def submit_group(
        self,
        key: Hashable,
        prompt: Prompt,
        completions: Sequence[str | Sequence[int]],
        scores: Sequence[Score],
        *,
        step: int = 0,
    ) -> None:
        """Queue all completions of a prompt so far, as texts or token ids, with their scores.

        `step`: updates of the policy that wrote them.
        """
        written = tuple(c if isinstance(c, str) else tuple(c) for c in completions)
        self._enqueue(
            key, GroupJob(prompt=prompt, completions=written, scores=tuple(scores), step=step)
        )

    def poll(self) -> list[tuple[Hashable, Score]]:
        """Every score that arrived since the last call, without waiting."""
        with self._changed:
            self._raise_failure()
            scored, self._scored = self._scored, []
            return scored

    def poll_groups(self) -> list[tuple[Hashable, tuple[Score, ...]]]:
        """The scores of every group that arrived since the last call, without waiting."""
        with self._changed:
            self._raise_failure()
            scored, self._scored_groups = self._scored_groups, []
            return scored

    def wait(self, seconds: float) -> None:
        """Wait until there is something to `poll` or `poll_groups`, at most `seconds`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._scored or self._scored_groups or self._failure, timeout=seconds
            )

    def drain(self) -> list[tuple[Hashable, Score]]:
        """Wait until everything submitted is scored; returns what `poll` had not."""
        self._wait_for_all()
        return self.poll()

    def drain_groups(self) -> list[tuple[Hashable, tuple[Score, ...]]]:
        """Wait until everything submitted is scored; returns what `poll_groups` had not."""
        self._wait_for_all()
        return self.poll_groups()

    def _wait_for_all(self) -> None:
        with self._changed:
            while self._num_unscored and self._failure is None:
                self._changed.wait()

    def close(self) -> None:
        """Kill the workers. What was submitted and not collected is dropped. May be repeated."""
        with self._changed:
            self._closing = True
            self._wake()
        self._supervisor.join()
        for worker in self._workers:
            worker.process.kill()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _enqueue(self, key: Hashable, job: Job | GroupJob) -> None:
        with self._changed:
            while self._num_unscored >= self._config.max_pending and self._failure is None:
                self._changed.wait()
            self._raise_failure()
            self._pending.append(_Submission(key=key, job=job))
            self._num_unscored += 1
            self._wake()

    def _wait_until_ready(self) -> None:
        with self._changed:
            while self._num_ready < self._config.num_workers and self._failure is None:
                self._changed.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def _raise_failure(self) -> None:
        assert not self._closing, "the pool is closed"
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake_sender.send_bytes(b"!")

    # The supervisor thread's side. Only it touches the workers while it runs.

    def _supervise(self) -> None:
        try:
            while not self._closing:
                self._hand_out()
                self._wait_for_news()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _hand_out(self) -> None:
        for index, worker in enumerate(self._workers):
            if not worker.idle:
                continue
            with self._changed:
                if not self._pending:
                    return
                submission = self._pending.popleft()
            worker.submission, worker.since = submission, time.monotonic()
            try:
                worker.connection.send(submission.job)
            except (BrokenPipeError, ConnectionResetError):  # it died idle, before this job
                with self._changed:
                    self._pending.appendleft(submission)
                worker.submission = None
                self._replace(index)

    def _wait_for_news(self) -> None:
        deadlines = [self._deadline(worker) for worker in self._workers if not worker.idle]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        connections: list[Connection] = [worker.connection for worker in self._workers]
        news = wait([self._wake_receiver, *connections], timeout)
        if self._wake_receiver in news:
            with self._changed:
                self._wake_receiver.recv_bytes()
                self._awake = False
        for index, worker in enumerate(self._workers):
            if worker.connection in news:
                self._receive(index, worker)
            elif not worker.idle and time.monotonic() >= self._deadline(worker):
                self._expire(index, worker)

    def _deadline(self, worker: _Worker) -> float:
        if worker.submission is None:
            return worker.since + self._config.startup_seconds
        return worker.since + self._seconds(worker.submission.job.prompt.domain)

    def _seconds(self, domain: str) -> float:
        """What a job may take: where it runs a program, that has its own limit below this one."""
        programs = self._config.sandbox.program_seconds if domain in self._sandboxed else 0.0
        return self._config.timeout_seconds + programs

    def _receive(self, index: int, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(index, worker)
            return
        if isinstance(message, CannotStart):
            kind = UserError if message.is_user_mistake else RuntimeError
            raise kind(f"a verifier worker cannot start: {message.reason}")
        if message == READY:
            worker.ready = True
            with self._changed:
                self._num_ready += 1
                self._changed.notify_all()
            return
        self._settle(worker, message)

    def _bury(self, index: int, worker: _Worker) -> None:
        """The process is gone without a word: its job, if any, gets the reason."""
        ending = worker.process.kill()
        if not worker.ready:
            raise RuntimeError(f"a verifier worker {ending} while starting")
        if worker.submission is not None:
            self._settle_broken(worker, f"crash: verifier {ending}")
        self._replace(index)

    def _expire(self, index: int, worker: _Worker) -> None:
        if not worker.ready:
            raise RuntimeError(
                f"a verifier worker was not ready after {self._config.startup_seconds:g} s"
            )
        assert worker.submission is not None, "it is ready and not idle"
        limit = self._seconds(worker.submission.job.prompt.domain)
        self._replace(index)
        self._settle_broken(worker, f"timeout after {limit:g} s")

    def _replace(self, index: int) -> None:
        self._workers[index].process.kill()
        self._workers[index] = self._start_worker()

    def _start_worker(self) -> _Worker:
        return _Worker(process=WorkerProcess.start(self._setup), since=time.monotonic())

    def _settle_broken(self, worker: _Worker, reason: str) -> None:
        assert worker.submission is not None, "it broke over a job"
        seconds = time.monotonic() - worker.since
        self._settle(worker, broken_result(worker.submission.job, reason, seconds))

    def _settle(self, worker: _Worker, result: Result) -> None:
        assert worker.submission is not None, "a worker answered without a job"
        with self._changed:
            if isinstance(result, Score):
                self._scored.append((worker.submission.key, result))
            else:
                self._scored_groups.append((worker.submission.key, result))
            self._num_unscored -= 1
            self._changed.notify_all()
        worker.submission = None
