"""Verifiers that do what they are told, or nothing. Not a test."""

from __future__ import annotations

import random
import time

from compass.types import Prompt, Score


def obey(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """`wrong` and `right` always; `length` is right for texts of even length; `hang` never ends
    for texts of even length."""
    even = len(completion) % 2 == 0
    while prompt.answer == "hang" and even:
        pass
    value = {"wrong": 0.0, "right": 1.0, "length": float(even), "hang": 0.0}[prompt.answer or ""]
    return Score(verdict=value, reward=value, valid=True, reason="", breakdown={}, seconds=0.0)


def obey_late(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """The same after a while that nobody can know beforehand."""
    time.sleep(random.SystemRandom().expovariate(1 / 0.03))
    return obey(prompt, completion, finished, thinking_open)


def break_down(prompt: Prompt, completion: str, finished: bool) -> Score:
    """No verdict, ever."""
    raise RuntimeError("out of order")
