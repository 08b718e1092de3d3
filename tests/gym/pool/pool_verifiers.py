"""Verifiers with every way to misbehave, importable by worker processes. Not a test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from compass.types import Prompt, Score


def verdict(value: float, reason: str = "", **breakdown: float) -> Score:
    return Score(
        verdict=value, reward=value, valid=True, reason=reason, breakdown=breakdown, seconds=0.0
    )


def spin() -> None:
    while True:
        pass


def hang_in_c() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # exponential, and never gives the lock up


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exhaust_memory() -> None:
    bytearray(2**36)


def print_loudly() -> None:
    print("shouting from a verifier", flush=True)


def announce_and_hang() -> None:
    print("hanging", file=sys.stderr, flush=True)
    hang_in_c()


def unpicklable() -> Score:
    return verdict(1.0, part=lambda: None)  # type: ignore[arg-type]


def raise_error() -> None:
    raise ValueError("boom")


def close_every_pipe() -> None:
    os.closerange(3, 256)


BEHAVIOURS: dict[str, Callable[[], object]] = {
    "right": lambda: verdict(1.0),
    "wrong": lambda: verdict(0.0),
    "spin": spin,
    "hang in C": hang_in_c,
    "announce and hang": announce_and_hang,
    "exit": lambda: os._exit(3),
    "exit 0": lambda: os._exit(0),
    "segfault": segfault,
    "raise": raise_error,
    "unpicklable": unpicklable,
    "not a score": lambda: None,
    "exhaust memory": exhaust_memory,
    "close every pipe": close_every_pipe,
    "0.7 seconds": lambda: time.sleep(0.7) or verdict(1.0),
    "pid": lambda: verdict(1.0, pid=os.getpid()),
    "torch": lambda: verdict(float("torch" in sys.modules)),
    "print": lambda: print_loudly() or verdict(1.0),
}
"""What a verifier does, by the name a test gives it."""


def behave(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """Do what the completion says."""
    return BEHAVIOURS[completion]()  # type: ignore[return-value]


def echo(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """Say back what arrived."""
    return verdict(float(finished), reason=completion, thinking_open=float(thinking_open))


def start_a_child_and_hang(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool
) -> Score:
    """The completion names a file for the child's process id."""
    child = subprocess.Popen(["sleep", "3600"])
    Path(completion).write_text(str(child.pid))
    child.wait()
    return verdict(1.0)


class ExitsOnArrival:
    """A verifier whose worker dies while it is being set up."""

    def __call__(
        self, prompt: Prompt, completion: str, finished: bool, thinking_open: bool
    ) -> Score:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int]]:
        return os._exit, (7,)


class StallsOnArrival(ExitsOnArrival):
    """A verifier whose worker never gets ready."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int]]:
        return time.sleep, (3600,)
