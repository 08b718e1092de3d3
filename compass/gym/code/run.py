"""One program against its tests, in sandboxes that hold nothing of what is expected.

The program's sandbox gets inputs and calls; what comes back is compared here. Test code runs in a
second sandbox, and its calls cross from one to the other as text: the program never meets what
judges it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from compass.gym.code.suite import CallTest, CodeTest, InputTest, Test
from compass.gym.sandbox.inside import literals, server
from compass.gym.sandbox.sandbox import BrokenError, Ending, OverError, Sandbox
from compass.gym.sandbox.supply import Sandboxes

_LONGER = 8
"""Times that a right result, written with its own types, can be longer than the expected one."""
_LONGER_BYTES = 1000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program's tests."""

    num_passed: int
    num_run: int
    reason: str
    """Of the first that failed; empty when none did."""
    is_suspect: bool
    """A sandbox broke. That may be the machine's doing: does a program pass that is right?"""


def run_tests(
    program: str,
    tests: Sequence[Test],
    sandboxes: Sandboxes,
    *,
    stop_early: bool,
    test_seconds: float,
) -> Outcome:
    """Run the tests in order, each for so long at most. `stop_early`: until the first that fails.

    Errors: `RuntimeError` where no sandbox starts.
    """
    num_passed, num_run, reason, is_suspect = 0, 0, "", False
    end = time.monotonic() + sandboxes.config.program_seconds
    with _Host(sandboxes) as subject, _Host(sandboxes) as tester:
        for test in tests:
            subject.prepare()
            if isinstance(test, CodeTest):
                tester.prepare()
            deadline = min(end, time.monotonic() + test_seconds)
            try:
                failure = _failure(program, test, subject, tester, deadline)
            except OverError as error:
                failure, is_suspect = str(error), is_suspect or isinstance(error, BrokenError)
                subject.drop()
                tester.drop()
            num_run += 1
            num_passed += not failure
            if failure and not reason:
                reason = f"test {num_run} of {len(tests)}: {failure}"
            if (failure and stop_early) or time.monotonic() >= end:
                break
    return Outcome(num_passed=num_passed, num_run=num_run, reason=reason, is_suspect=is_suspect)


class _Host:
    """A sandbox for one program, or for its tests; after trouble the next one takes over."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._sandbox: Sandbox | None = None
        self._loaded: str | None = None

    def prepare(self) -> None:
        """Have a started sandbox."""
        if self._sandbox is None:
            self._sandbox, self._loaded = self._sandboxes.take(), None

    def load(self, code: str, deadline: float) -> None:
        """Have it hold this code."""
        if self._loaded != code:
            self.send(server.PROGRAM, code.encode("utf-8", "surrogatepass"), deadline)
            self._loaded = code

    def send(self, kind: bytes, content: bytes, deadline: float) -> None:
        assert self._sandbox is not None, "not prepared"
        self._sandbox.send(kind, content, deadline)

    def receive(self, deadline: float) -> tuple[bytes, bytes]:
        assert self._sandbox is not None, "not prepared"
        return self._sandbox.receive(deadline)

    def drop(self) -> None:
        """End the sandbox, if there is one."""
        if self._sandbox is not None:
            self._sandboxes.discard(self._sandbox)
            self._sandbox = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.drop()


def _failure(program: str, test: Test, subject: _Host, tester: _Host, deadline: float) -> str:
    """Why the program fails the test; empty when it passes. Errors: `OverError`."""
    subject.load(program, deadline)
    if isinstance(test, InputTest):
        return _input_failure(test, subject, deadline)
    if failure := _loading_failure(subject, deadline):
        return failure
    if isinstance(test, CallTest):
        return _call_failure(test, subject, deadline)
    return _code_failure(test, subject, tester, deadline)


def _input_failure(test: InputTest, subject: _Host, deadline: float) -> str:
    subject.send(server.STDIN, test.stdin.encode("utf-8", "replace"), deadline)
    ending = _ending(*subject.receive(deadline))
    if ending.code:
        return _complaint(ending)
    return "" if _lines(ending.output.decode("utf-8", "replace")) == _lines(test.stdout) else _WRONG


_WRONG = "wrong output"


def _lines(text: str) -> list[str]:
    """Without trailing white space, of the lines and of the whole."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _loading_failure(subject: _Host, deadline: float) -> str:
    """Load the program in a process that answers calls; why it could not."""
    subject.send(server.SERVE, b"", deadline)
    kind, content = subject.receive(deadline)
    return "" if kind == server.READY else _complaint(_ending(kind, content))


def _call_failure(test: CallTest, subject: _Host, deadline: float) -> str:
    call = literals.encode((test.name, list(test.arguments), {}))
    subject.send(server.CALL, call, deadline)
    kind, content = subject.receive(deadline)
    if kind != server.VALUE:
        return _no_value(kind, content, subject, deadline)
    _release(subject, deadline)
    return "" if _is_expected(content, test.expected) else _WRONG


def _is_expected(content: bytes, expected: Sequence[Any]) -> bool:
    longest = max(len(literals.encode(value)) for value in expected)
    if len(content) > _LONGER * longest + _LONGER_BYTES:
        return False
    try:
        return _like_json(literals.decode(content)) in expected
    except (ValueError, TypeError, RecursionError):
        return False


def _like_json(value: Any) -> Any:
    """As it would be in the row, which knows neither tuples nor keys that are numbers."""
    if isinstance(value, list | tuple):
        return [_like_json(item) for item in value]
    if isinstance(value, dict):
        return {
            str(key) if isinstance(key, int) else key: _like_json(item)
            for key, item in value.items()
        }
    return value


def _code_failure(test: CodeTest, subject: _Host, tester: _Host, deadline: float) -> str:
    tester.load(test.code, deadline)
    tester.send(server.TEST, " ".join(test.hidden).encode(), deadline)
    while True:
        kind, content = tester.receive(deadline)
        if kind != server.CALL:
            break
        subject.send(server.CALL, content, deadline)
        answer, result = subject.receive(deadline)
        if answer not in (server.VALUE, server.RAISED):
            tester.drop()
            return _no_value(answer, result, subject, deadline)
        tester.send(answer, result, deadline)
    ending = _ending(kind, content)
    _release(subject, deadline)
    return _complaint(ending) if ending.code else ""


def _no_value(kind: bytes, content: bytes, subject: _Host, deadline: float) -> str:
    """What a call came to that gave no value."""
    if kind == server.DONE:
        return f"it ended when it was called: {_complaint(_ending(kind, content))}"
    _release(subject, deadline)
    text = content[:_LONGER_BYTES].decode("utf-8", "replace")
    if kind == server.FOREIGN:
        return f"a result of type {text}, which is not built in"
    return f"it raised {text}"


def _release(subject: _Host, deadline: float) -> None:
    """Let the process that answered calls end. What it still does is no longer judged."""
    try:
        subject.send(server.END, b"", deadline)
        _ending(*subject.receive(deadline))
    except OverError:
        subject.drop()


def _ending(kind: bytes, content: bytes) -> Ending:
    if kind != server.DONE:
        raise BrokenError("it speaks out of turn")
    return Ending.parse(content)


def _complaint(ending: Ending) -> str:
    if ending.code < 0:
        return f"killed by signal {-ending.code}"
    return ending.note or f"exit code {ending.code}"
