"""Domain `reasoning_gym`: the procedurally generated tasks of the reasoning-gym package.

Many of its tasks give partial credit to wrong answers (0.01 to 0.17), so the verdict is
"score is 1", and the package's own number is kept as the `raw_score` component.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from compass.errors import UserError
from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.types import Prompt

FAULTY_TASKS: Mapping[str, str] = MappingProxyType(
    {
        "arc_agi": "its problems do not survive being written as JSON",
        "boxnet": "its verifier crashes",
        "composite": "it is a mixture of tasks; make prompts for each of them instead",
        "game_of_life_halting": "its verifier accepts wrong answers",
        "graph_color": "its verifier rejects its own answers",
        "propositional_logic": "its verifier rejects its own answers",
        "rearc": "its problems do not survive being written as JSON",
        "rubiks_cube": "its verifier rejects its own answers",
        "rush_hour": "its verifier rejects its own answers",
    }
)
"""Tasks of reasoning-gym 0.1.25 that cannot serve as a reward, and why."""

_MAX_REASON = 200
"""Characters."""

_REFUSING_TASKS: Mapping[str, type[Exception]] = MappingProxyType(
    {"prime_factorization": ValueError}
)
"""Tasks whose verifier raises this on an answer that it cannot read, which is a wrong answer."""

_ANSWER_TAG = ("<answer>", "</answer>")


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the task's own score of the answer is 1, else 0; breakdown `raw_score`.

    The answer is the text after `</think>`, inside the last `<answer>...</answer>` if there is
    one. `prompt.extra` must hold `task` and `entry` as written by `make_prompts`.
    """
    unjudgeable = _lack(prompt)
    if unjudgeable is not None:
        return no_verdict(f"prompt {prompt.id!r} {unjudgeable}")
    task, entry = prompt.extra["task"], prompt.extra["entry"]
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    answer = _tagged_answer(text)
    try:
        raw_score = float(_scorer(task)(answer, dict(entry)))
    except _REFUSING_TASKS.get(task, ()) as error:
        return Judgement(verdict=0.0, reason=f"no answer found: {error}"[:_MAX_REASON])
    return Judgement(
        verdict=float(raw_score == 1.0), answer=answer or None, breakdown={"raw_score": raw_score}
    )


def check(prompt: Prompt) -> str | None:
    """Why no completion of the prompt can be judged: a field is missing, or the task's own answer
    does not score 1."""
    unjudgeable = _lack(prompt)
    if unjudgeable is not None:
        return unjudgeable
    task, entry = prompt.extra["task"], dict(prompt.extra["entry"])
    if "answer" not in entry or _scorer(task)(entry["answer"], entry) != 1.0:
        return f"needs an `entry` whose own `answer` task {task!r} scores 1"
    return None


def _lack(prompt: Prompt) -> str | None:
    from reasoning_gym.factory import DATASETS

    task, entry = prompt.extra.get("task"), prompt.extra.get("entry")
    if not isinstance(task, str) or not isinstance(entry, Mapping):
        return "needs the fields `task` and `entry`, as tools/make_reasoning.py writes them"
    if task in FAULTY_TASKS:
        return f"needs another task than {task!r}: {FAULTY_TASKS[task]}"
    if task not in DATASETS:
        return f"needs a `task` of reasoning_gym, which has no {task!r}"
    return None


def _tagged_answer(text: str) -> str:
    opening, closing = _ANSWER_TAG
    _, tagged, rest = text.rpartition(opening)
    return (rest.partition(closing)[0] if tagged else text).strip()


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def make_prompts(task: str, size: int, seed: int, **task_config: Any) -> list[Prompt]:
    """Generate `size` prompts of one task; the same arguments give the same prompts.

    Each prompt has passed through JSON, and its reference answer scores 1 there. Errors:
    `UserError` for an unknown or faulty task, a bad `task_config`, or an entry whose reference
    answer does not score 1.
    """
    return [
        Prompt(
            id=f"reasoning_gym/{task}/{seed}/{index}",
            messages=({"role": "user", "content": entry["question"]},),
            answer=entry["answer"],
            domain="reasoning_gym",
            extra={"task": task, "entry": entry},
        )
        for index, entry in enumerate(_entries(task, size, seed, task_config))
    ]


def _entries(
    task: str, size: int, seed: int, task_config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task in FAULTY_TASKS:
        raise UserError(f"task {task!r} cannot be used: {FAULTY_TASKS[task]}; choose another")
    if task not in DATASETS:
        alike = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.0)
        raise UserError(f"unknown reasoning_gym task {task!r}; did you mean {', '.join(alike)}?")
    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **task_config)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"task {task!r} refuses {dict(task_config)}: {error}") from error
    for entry in dataset:
        written = json.loads(json.dumps(entry, default=str))
        if _scorer(task)(written["answer"], written) != 1.0:
            raise UserError(
                f"task {task!r} does not score its own answer {written['answer']!r} as 1 "
                f"(seed {seed}); choose another task or configuration"
            )
        yield written
