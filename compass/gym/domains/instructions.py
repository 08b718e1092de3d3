"""Domain `instructions`: does the answer follow the constraints that its prompt states.

The kinds of constraint are those of `compass.gym.instructions.constraint`; docs/gym.md says where
they differ from IFEval's own code (arXiv 2311.07911).
"""

from __future__ import annotations

from compass.gym.instructions.constraint import (
    BadConstraintsError,
    Constraint,
    read_constraints,
    variants,
)
from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.types import Prompt


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the answer, as it stands, follows every constraint, else 0.

    Breakdown: `followed`, the share of constraints that it follows, and by the loose rule
    `followed_loosely` and `all_loosely`.
    """
    try:
        constraints = read_constraints(prompt.extra, prompt.answer)
    except BadConstraintsError as error:
        return no_verdict(f"prompt {prompt.id!r} {error}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    return _judgement(constraints, text.strip())


def _judgement(constraints: tuple[Constraint, ...], answer: str) -> Judgement:
    broken = [one for one in constraints if not one.holds(answer)]
    others = variants(answer)
    num_loosely = len(constraints) - sum(
        not any(one.holds(text) for text in others) for one in broken
    )
    return Judgement(
        verdict=float(not broken),
        reason=f"not followed: {', '.join(one.name for one in broken)}" if broken else "",
        breakdown={
            "followed": 1 - len(broken) / len(constraints),
            "followed_loosely": num_loosely / len(constraints),
            "all_loosely": float(num_loosely == len(constraints)),
        },
    )


def check(prompt: Prompt) -> str | None:
    """Why no answer can be judged: the constraints are missing, unknown or incomplete."""
    try:
        read_constraints(prompt.extra, prompt.answer)
    except BadConstraintsError as error:
        return str(error)
    return None
