"""Sums of one-digit terms, judged as mathematics: `5-5+2=` is answered `\\boxed{2}`.

The careless demonstration is right too, but does the sum in its head, which a small model cannot.
"""

from __future__ import annotations

import random

from compass.gym.domains.chain import draw_problem
from compass.gym.generated.task import Task
from compass.types import THINK_END, THINK_START

LEVELS = (2, 3, 4, 5, 6)
"""Numbers of terms, equally likely."""


def draw_sum(rng: random.Random) -> Task:
    """One sum, whose every running total is in 0..20."""
    problem = draw_problem(rng, rng.choice(LEVELS))
    boxed = f"\\boxed{{{problem.answer}}}"
    return Task(
        question=problem.question,
        domain="math",
        careful=f"{THINK_START}" + "\n".join(problem.steps) + f"{THINK_END}{boxed}",
        careless=f"{THINK_START}{THINK_END}{boxed}",
        answer=str(problem.answer),
        extra={},
    )
