"""Calling a reward function the way its framework does, and reading what it returns.

One completion at a time; a function that takes lists, as TRL's do, gets a group as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from compass.errors import UserError
from compass.gym.datasets import given_answer
from compass.own import load_function, own_file, place_of
from compass.types import Prompt

Style = Literal["trl", "verl", "plain"]
_MARKS: Mapping[str, Style] = {"completions": "trl", "solution_str": "verl", "completion": "plain"}


class NoRewardError(Exception):
    """A function gave none, and the fault is no completion's; its argument says why."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What a function may know of the run, as TRL names it."""

    global_step: int
    """Updates of the policy that wrote the completions."""


@dataclass(frozen=True, kw_only=True)
class WholeGroup:
    """All completions of a prompt so far. Built by `compass.gym.pool.worker`."""

    prompt: Prompt
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]] | None
    """Their tokens; None where they were given as text."""
    step: int
    """See `TrainerState.global_step`."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a function made of one completion. Built by `call_reward`."""

    value: float | None
    """None: it does not apply."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else it returned, for the log."""


@cache
def style_of(fn: str) -> Style:
    """How the function that `path/file.py:function` names wants to be called.

    Raises:
        UserError: it does not import, or none of its parameters tells.
    """
    names = inspect.signature(load_function(fn)).parameters
    for mark, style in _MARKS.items():
        if mark in names:
            return style
    raise UserError(
        f"{fn} takes ({', '.join(names)}), which is no style of reward: give it a parameter "
        f"{', '.join(_MARKS)}"
    )


def takes_groups(fn: str) -> bool:
    """Whether the function is called with all completions of a prompt at once."""
    return style_of(fn) == "trl"


def call_reward(fn: str, prompt: Prompt, completion: str) -> Given:
    """What the function says of one completion. What it prints is dropped.

    Raises:
        NoRewardError: it raised, or returned what is no reward.
    """
    return _given(_called(fn, _offered(style_of(fn), prompt, completion)))


def call_group_reward(fn: str, group: WholeGroup) -> list[Given]:
    """What the function says of each completion of a group. What it prints is dropped.

    Raises:
        NoRewardError: it raised, or returned what is no list of as many rewards.
    """
    returned = _called(fn, _offered_lists(group))
    number = len(group.completions)
    if not isinstance(returned, list | tuple) or len(returned) != number:
        of = "1 completion" if number == 1 else f"{number} completions"
        raise NoRewardError(f"returned {_shown(returned)} for a list of {of}")
    return [_given(value) for value in returned]


def _called(fn: str, offered: Mapping[str, Any]) -> Any:
    function = load_function(fn)
    arguments = _accepted(function, offered)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            returned = function(**arguments)
            return asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned
    except Exception as error:
        where = place_of(error, own_file(fn))
        raise NoRewardError(f"{type(error).__name__}: {_short(str(error))} ({where})") from None


def _offered(style: Style, prompt: Prompt, completion: str) -> dict[str, Any]:
    """Every argument that a function of one completion may ask for."""
    row = _row(prompt)
    if style == "plain":
        return row | {"prompt": _messages(prompt), "completion": completion}
    return {
        "data_source": prompt.domain,
        "extra_info": {},
        **row,
        "solution_str": completion,
        "ground_truth": given_answer(prompt),
    }


def _offered_lists(group: WholeGroup) -> dict[str, Any]:
    """Every argument that a function of a group may ask for."""
    prompt, number = group.prompt, len(group.completions)
    offered: dict[str, Any] = {name: [value] * number for name, value in _row(prompt).items()}
    if group.completion_ids is not None:
        offered["completion_ids"] = [list(ids) for ids in group.completion_ids]
    offered["trainer_state"] = TrainerState(global_step=group.step)
    if prompt.raw:
        texts = [prompt.messages[0]["content"]] * number
        return offered | {"prompts": texts, "completions": list(group.completions)}
    return offered | {
        "prompts": [_messages(prompt) for _ in range(number)],
        "completions": [[{"role": "assistant", "content": said}] for said in group.completions],
    }


def _row(prompt: Prompt) -> dict[str, Any]:
    return {
        **prompt.extra,
        "id": prompt.id,
        "answer": prompt.extra.get("answer", prompt.answer),
        "domain": prompt.domain,
        "difficulty": prompt.difficulty,
        "lang": prompt.lang,
    }


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [dict(message) for message in prompt.messages]


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the function takes, by name; all of them where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in offered:
            raise NoRewardError(f"asks for `{parameter.name}`, which the row has not")
    return {p.name: offered[p.name] for p in parameters if p.name in offered}


async def _awaited(returned: Any) -> Any:
    return await returned


def _given(returned: Any) -> Given:
    if isinstance(returned, Mapping):
        if "score" not in returned:
            raise NoRewardError(f"returned a dict without `score`: {_shown(returned)}")
        others = {k: v for k, v in returned.items() if k != "score" and _is_number(v)}
        return Given(value=_value(returned["score"]), numbers={k: float(others[k]) for k in others})
    return Given(value=_value(returned))


def _value(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise NoRewardError(f"returned {_shown(value)}, which is no finite number")
    return float(value)


def _is_number(value: Any) -> bool:
    """NumPy's and torch's scalars are numbers too."""
    try:
        return not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    return _short(repr(value), 80)


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
