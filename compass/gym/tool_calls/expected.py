"""Which calls are right, in the forms that data sets have them.

A list of {"name", "arguments"} (xLAM, OpenAI) asks for these arguments; a list of
{name: {argument: [values]}} (BFCL) for one of the values each, where "" among them means that the
argument may be left out. An empty list asks for no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compass.gym.tool_calls.schema import BadToolsError, read_json

_IGNORED = re.compile(r"[ ,./\-_*^]")
"""What BFCL ignores in texts, with case and the kind of quotation marks."""

FORMS = ("calls", "ground_truth", "answers")


@dataclass(frozen=True, kw_only=True)
class Fields:
    """An object, by what each of its fields may be."""

    choices: Mapping[str, Choice]

    def allows(self, given: object) -> bool:
        """Every field given is one of these and right, and none is lacking that must be there."""
        return isinstance(given, dict) and self.wrong_field(given) is None

    def wrong_field(self, given: Mapping[str, Any]) -> str | None:
        """The first field that is wrong, unknown or lacking."""
        for name, value in given.items():
            if name not in self.choices or not self.choices[name].allows(value):
                return name
        return next(
            (name for name, one in self.choices.items() if not one.optional and name not in given),
            None,
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one argument may be."""

    values: tuple[Any, ...]
    """Scalars, lists of them, or `Fields`."""
    optional: bool

    def allows(self, given: object) -> bool:
        """Whether it is one of the values."""
        return any(_same(given, value) for value in self.values)

    def has_type_of(self, given: object) -> bool:
        """Whether one of the values has its exact type: BFCL lets such a one pass for a variable,
        whatever the schema says."""
        return any(type(given) is type(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One call that must be made."""

    name: str
    arguments: Fields


def _same(given: object, value: object) -> bool:
    if isinstance(value, Fields):
        return value.allows(given)
    if isinstance(value, str):
        return isinstance(given, str) and plain(given) == plain(value)
    if isinstance(value, list):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(value)
            and all(_same(one, other) for one, other in zip(given, value, strict=True))
        )
    return isinstance(given, bool) == isinstance(value, bool) and given == value


def plain(text: str) -> str:
    """A text as BFCL compares it."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def read_expected(row: Mapping[str, Any], answer: str | None) -> tuple[Expected, ...]:
    """The calls of a row, in `calls`, `ground_truth` or `answers`, else in the JSON of its answer.

    Errors: `BadToolsError`.
    """
    given = next((row[name] for name in FORMS if row.get(name) is not None), answer)
    given = read_json(given, "calls")
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list | tuple):
        raise BadToolsError(
            "needs `calls`: a list of calls, empty where none is right, or its JSON"
        )
    return tuple(_expected(f"calls[{index}]", one) for index, one in enumerate(given))


def _expected(where: str, call: object) -> Expected:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if isinstance(call, Mapping) and isinstance(call.get("name"), str) and "arguments" in call:
        arguments = read_json(call["arguments"], "arguments")
        if isinstance(arguments, Mapping):
            return Expected(name=call["name"], arguments=_exactly(arguments))
    elif isinstance(call, Mapping) and len(call) == 1:
        [(name, arguments)] = call.items()
        if isinstance(arguments, Mapping):
            return Expected(name=name, arguments=_any_of(arguments))
    raise BadToolsError(
        f"`{where}` must be an object with `name` and `arguments`, or as BFCL's are"
    )


def _exactly(arguments: Mapping[str, Any]) -> Fields:
    choices = {
        k: Choice(values=(_nested(v, _exactly),), optional=False) for k, v in arguments.items()
    }
    return Fields(choices=choices)


def _any_of(arguments: Mapping[str, Any]) -> Fields:
    return Fields(choices={name: _choice(values) for name, values in arguments.items()})


def _choice(values: object) -> Choice:
    listed = values if isinstance(values, list) else [values]
    return Choice(values=tuple(_nested(v, _any_of) for v in listed), optional="" in listed)


def _nested(value: Any, fields: Any) -> Any:
    if isinstance(value, Mapping):
        return fields(value)
    return [_nested(item, fields) for item in value] if isinstance(value, list | tuple) else value
