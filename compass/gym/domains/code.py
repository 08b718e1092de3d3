"""Domain `code`: a Python program, in the last fenced block of the answer, against its tests.

Programs run in sandboxes of the worker (`compass.gym.sandbox`); docs/security.md says what that
protects. The forms that tests come in are those of `compass.gym.code.suite`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from compass.errors import UserError
from compass.gym.code.program import last_block
from compass.gym.code.run import Outcome, run_tests
from compass.gym.code.suite import BadTestsError, CodeTest, InputTest, read_suite
from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.gym.sandbox.supply import SandboxConfig, Sandboxes
from compass.types import Prompt

GRADES = ("all", "share")


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """How programs are graded."""

    grade: str = "all"
    """What the reward is. `all`: 1 for a program that passes every test, else 0; the first that
    fails ends it. `share`: the share of tests that it passes; all of them are run."""

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise UserError(f"grade is {self.grade!r}; choose one of {', '.join(GRADES)}")


@dataclass(frozen=True, kw_only=True)
class _Workshop:
    config: CodeConfig
    sandboxes: Sandboxes


_WORKSHOP: ContextVar[_Workshop] = ContextVar("workshop")


_KNOWN_SECONDS = 20.0
"""It takes a thousandth of that, but the machine may be busy, and this is no race."""
_KNOWN_PROGRAM = """\
def double(value):
    return value * 2

if __name__ == "__main__":
    print(double(int(input())))
"""
_KNOWN_TESTS = (
    InputTest(stdin="4", stdout="8"),
    CodeTest(code="assert double((1,)) == (1, 1)"),
)


@contextmanager
def workshop(config: CodeConfig, sandbox: SandboxConfig) -> Iterator[None]:
    """Where `judge` may be called.

    Errors: `UserError` for a level that cannot be had here, or under whose limits a small program
    that is right fails.
    """
    with Sandboxes(sandbox) as sandboxes:
        if failure := _failure_of_a_right_program(sandboxes):
            raise UserError(
                f"gym.sandbox: {failure}; raise memory_mb, max_processes or test_seconds"
            )
        token = _WORKSHOP.set(_Workshop(config=config, sandboxes=sandboxes))
        try:
            yield
        finally:
            _WORKSHOP.reset(token)


def _failure_of_a_right_program(sandboxes: Sandboxes) -> str:
    outcome = run_tests(
        _KNOWN_PROGRAM, _KNOWN_TESTS, sandboxes, stop_early=True, test_seconds=_KNOWN_SECONDS
    )
    return outcome.reason and f"a small program that is right fails here, {outcome.reason}"


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """The verdict is 1 when the program passes all tests, else 0; the reward is as `CodeConfig`
    has it.

    Breakdown: `tests_passed`, the share of those that were run. Errors: `RuntimeError` where
    sandboxes do not start, or break with a program that is right as well, which is no verdict;
    `LookupError` outside a `workshop`.
    """
    try:
        tests = read_suite(prompt.extra, prompt.answer)
    except BadTestsError as error:
        return no_verdict(f"prompt {prompt.id!r} {error}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    program = last_block(text)
    if program is None:
        return Judgement(verdict=0.0, reason="no program found: there is no fenced block")
    here = _WORKSHOP.get()
    outcome = run_tests(
        program,
        tests,
        here.sandboxes,
        stop_early=here.config.grade == "all",
        test_seconds=here.sandboxes.config.test_seconds,
    )
    if outcome.is_suspect and (failure := _failure_of_a_right_program(here.sandboxes)):
        raise RuntimeError(failure)
    return _judgement(outcome, len(tests), here.config.grade)


def _judgement(outcome: Outcome, num_tests: int, grade: str) -> Judgement:
    share = outcome.num_passed / num_tests
    return Judgement(
        verdict=float(share == 1),
        reward=share if grade == "share" else None,
        reason=outcome.reason,
        breakdown={"tests_passed": outcome.num_passed / outcome.num_run},
    )


def check(prompt: Prompt) -> str | None:
    """Why no program can be judged: the prompt's tests are missing or cannot be run."""
    try:
        read_suite(prompt.extra, prompt.answer)
    except BadTestsError as error:
        return str(error)
    return None
