"""One generated task with two demonstrations: how it is done, and how it is often done."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compass.gym.domains.chain import is_held_out
from compass.types import Prompt

_MAX_REPEATS = 1000
"""Draws in a row that are known already, after which a kind of task counts as exhausted."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question, what its verifier needs, and two answers."""

    question: str
    domain: str
    careful: str
    """A demonstration that its verifier accepts."""
    careless: str
    """A demonstration of the same length or less, which is mostly wrong or hard to get right."""
    answer: str | None = None
    extra: Mapping[str, Any]
    """Further fields of its row in a prompt file."""

    @property
    def held_out(self) -> bool:
        """Whether the question belongs to evaluation: no seed moves it."""
        return is_held_out(self.question)


Draw = Callable[[random.Random], Task]
"""Makes one task of a kind."""


def draw_tasks(draw: Draw, rng: random.Random, *, held_out: bool, distinct: bool) -> Iterator[Task]:
    """Tasks of one side of the split. With `distinct` no question comes twice, and the iterator
    ends where new ones are no longer found; otherwise it has no end."""
    seen: set[str] = set()
    num_repeats = 0
    while num_repeats < _MAX_REPEATS:
        task = draw(rng)
        if task.held_out != held_out:
            continue
        if distinct and task.question in seen:
            num_repeats += 1
            continue
        num_repeats = 0
        seen.add(task.question)
        yield task


def prompt_of(task: Task, identifier: str) -> Prompt:
    """The task as a row of a prompt file."""
    return Prompt(
        id=identifier,
        messages=({"role": "user", "content": task.question},),
        answer=task.answer,
        domain=task.domain,
        extra=task.extra,
    )
