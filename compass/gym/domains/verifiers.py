"""Domain `verifiers`: tasks of the verifiers package, judged by their own rewards.

Rows are made by tools/make_verifiers.py. The package is no dependency of the project; docs/gym.md
says where it is installed.
"""

from __future__ import annotations

import math
from typing import Any

from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.types import THINK_END, THINK_START, Prompt

FIELDS = ("taskset", "taskset_config", "task")
"""Fields of a row that are read here."""

_RIGHT_ABOVE = 0.5
"""A task's rewards have no verdict among them: a sum above this is right."""


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """The reward is the weighted sum of the task's own rewards, the verdict whether it is above
    0.5; the breakdown has each reward and metric. Errors: whatever these functions raise."""
    lack = check(prompt)
    if lack is not None:
        return no_verdict(f"prompt {prompt.id!r} {lack}")
    from compass.gym.tasksets import rewarded, task_of

    answer = after_thinking(completion, thinking_open)
    if answer is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    thinking = completion.rpartition(THINK_END)[0].strip().removeprefix(THINK_START).strip()
    reward, parts = rewarded(task_of(prompt.extra), thinking, answer.strip())
    if not math.isfinite(reward):
        return no_verdict(f"the rewards add up to {reward}")
    return Judgement(verdict=float(reward > _RIGHT_ABOVE), reward=reward, breakdown=parts)


def check(prompt: Prompt) -> str | None:
    """Why no answer can be judged: fields are missing, or the task needs more than an answer."""
    missing = [name for name in ("taskset", "task") if not prompt.extra.get(name)]
    if missing:
        return f"needs the field `{missing[0]}`, as tools/make_verifiers.py writes it"
    from compass.gym.tasksets import lacking, task_of

    task: Any = task_of(prompt.extra)
    return lacking(task)
