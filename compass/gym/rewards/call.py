"""Calling a reward function the way its framework does, and reading what it returns.

One completion at a time: a function that takes lists, as TRL's do, gets lists of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
from collections.abc import Callable, Mapping
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
    """A function gave none, and the fault is not the completion's; its argument says why."""


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


def call_reward(fn: str, prompt: Prompt, completion: str) -> Given:
    """What the function says of one completion. What it prints is dropped.

    Raises:
        NoRewardError: it raised, or returned what is no reward.
    """
    function, style = load_function(fn), style_of(fn)
    arguments = _accepted(function, _offered(style, prompt, completion))
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            returned = function(**arguments)
            if inspect.isawaitable(returned):
                returned = asyncio.run(_awaited(returned))
    except Exception as error:
        where = place_of(error, own_file(fn))
        raise NoRewardError(f"{type(error).__name__}: {_short(str(error))} ({where})") from None
    return _given(_only(returned) if style == "trl" else returned)


def _offered(style: Style, prompt: Prompt, completion: str) -> dict[str, Any]:
    """Every argument that a function may ask for."""
    row = {
        **prompt.extra,
        "id": prompt.id,
        "answer": prompt.answer,
        "domain": prompt.domain,
        "difficulty": prompt.difficulty,
        "lang": prompt.lang,
    }
    messages = [dict(message) for message in prompt.messages]
    if style == "plain":
        return row | {"prompt": messages, "completion": completion}
    if style == "verl":
        return {
            "data_source": prompt.domain,
            "extra_info": {},
            **row,
            "solution_str": completion,
            "ground_truth": given_answer(prompt),
        }
    columns = {name: [value] for name, value in row.items()}
    if prompt.raw:
        return columns | {"prompts": [messages[0]["content"]], "completions": [completion]}
    said = [{"role": "assistant", "content": completion}]
    return columns | {"prompts": [messages], "completions": [said]}


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


def _only(returned: Any) -> Any:
    """The one value of a list of one."""
    if not isinstance(returned, list | tuple) or len(returned) != 1:
        raise NoRewardError(f"returned {_shown(returned)} for a list of one completion")
    return returned[0]


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
