"""Completions made from BFCL's possible answers: right ones, and with one argument changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Calls = Sequence[tuple[str, Mapping[str, Any]]]


def gold(ground_truth: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Calls:
    """One right set of calls: of each argument the first value that is not "left out". Two possible
    answers of BFCL name an argument that may be left out and that their function does not have."""
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    return [
        (name, {k: v for k, v in chosen(arguments).items() if k in known[name]["properties"]})
        for call in ground_truth
        for name, arguments in call.items()
    ]


def chosen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    picked = {}
    for name, values in arguments.items():
        given = [value for value in values if value != ""]
        if given:
            picked[name] = _value(given[0])
    return picked


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return chosen(value)
    return [_value(item) for item in value] if isinstance(value, list) else value


def changed(calls: Calls, tools: Sequence[Mapping[str, Any]]) -> Iterator[Calls]:
    """The same calls, once for each required argument, which has another value there."""
    required = {
        tool["function"]["name"]: tool["function"]["parameters"].get("required", [])
        for tool in tools
    }
    for index, (function, arguments) in enumerate(calls):
        for name in required[function]:
            if name in arguments:
                other = {**arguments, name: another(arguments[name])}
                yield [*calls[:index], (function, other), *calls[index + 1 :]]


def another(value: Any) -> Any:
    """A value of the same type that no data set has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1234567
    if isinstance(value, str):
        return value + "zzz"
    if isinstance(value, list):
        return [*value, another(value[0]) if value else 1234567]
    return {**value, "zzz": 1} if isinstance(value, dict) else "zzz"


def as_json(calls: Calls) -> str:
    """As Hermes and Qwen write them."""
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def as_python(calls: Calls) -> str:
    """As BFCL's prompting models write them."""
    written = [
        f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
        for name, arguments in calls
    ]
    return f"[{', '.join(written)}]"
