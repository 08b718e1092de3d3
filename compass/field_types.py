"""Which values a config field takes: its type annotation, read as a check.

Fields are bool, int, float, str, Path, Literal, `X | None` and other unions, tuples, lists and
dicts with string keys, of these or of dataclasses of them. Nothing is coerced, save that an int
serves where a float is expected and a string where a path is.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MAX_DIGITS = 1000
"""Of an integer: Python refuses to write out numbers of thousands of digits."""
_TOO_MANY_DIGITS = f"an integer of at most {MAX_DIGITS} digits"
_TRUE_FALSE = {"true": True, "false": False}
_SCALAR_NAMES = {
    bool: "a bool (true or false)",
    int: "an integer",
    float: "a float",
    str: "a string",
    Path: "a path",
    type(None): "None",
}


class WrongTypeError(Exception):
    """A value does not fit the type of its field. Its argument, if there is one, says what would,
    where the type alone does not."""


def describe(kind: Any) -> str:
    """A type in words, for the remedy of an error message."""
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arm) for arm in arms)
    if origin is Literal:
        return "one of " + ", ".join(repr(arm) for arm in arms)
    if dataclasses.is_dataclass(kind):
        return f"a table of {', '.join(field.name for field in dataclasses.fields(kind))}"
    if origin is dict:
        return f"a table whose values are each {describe(arms[1])}"
    if origin is list or (origin is tuple and arms[-1] is Ellipsis):
        return f"a list whose items are each {describe(arms[0])}"
    if origin is tuple:
        return "a list of " + ", ".join(describe(arm) for arm in arms)
    return _SCALAR_NAMES[kind]


def is_open_ended(kind: Any) -> bool:
    """Whether a field of type `kind` takes any number of values."""
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(map(is_open_ended, arms))
    return origin in (list, dict) or (origin is tuple and arms[-1] is Ellipsis)


def from_toml(value: Any, kind: Any) -> Any:
    """`value`, as TOML gives it, as a field of type `kind`; an int where a float is expected is the
    only conversion between numbers.

    Raises:
        WrongTypeError: it does not fit.
    """
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _first_fitting(from_toml, value, arms)
    if origin is Literal:
        if not any(value == arm and type(value) is type(arm) for arm in arms):
            raise WrongTypeError
        return value
    if origin in (tuple, list):
        return _convert_list(value, origin, arms)
    if origin is dict:
        if not isinstance(value, dict):
            raise WrongTypeError
        return {key: from_toml(item, arms[1]) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_table(value, kind)
    return _convert_scalar(value, kind)


def table_of(kind: Any) -> Any:
    """The dataclass of a field that holds tables of the user's own names, `[path.NAME]`; else
    None."""
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((table for arm in arms if (table := table_of(arm)) is not None), None)
    return arms[1] if origin is dict and dataclasses.is_dataclass(arms[1]) else None


def _convert_table(value: Any, kind: Any) -> Any:
    if not isinstance(value, dict):
        raise WrongTypeError
    hints = get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    given = {}
    for key, item in value.items():
        if key not in known:
            raise WrongTypeError(f"{describe(kind)}: it has no {key!r}")
        try:
            given[key] = from_toml(item, hints[key])
        except WrongTypeError as error:
            wanted = error.args[0] if error.args else describe(hints[key])
            raise WrongTypeError(f"{describe(kind)}, whose {key} is {wanted}") from None
    for name, field in known.items():
        has_default = field.default is not dataclasses.MISSING
        if name not in given and not has_default and field.default_factory is dataclasses.MISSING:
            raise WrongTypeError(f"{describe(kind)}, of which {name} is required")
    return kind(**given)


def from_words(words: list[str], kind: Any) -> Any:
    """Command-line words as a field of type `kind`, by way of the value TOML would have given.

    Raises:
        WrongTypeError: they do not fit.
    """
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _first_fitting(from_words, words, arms)
    if origin in (tuple, list):
        return from_toml(_group_words(words, origin, arms), kind)
    if origin is dict:
        if len(words) % 2:
            raise WrongTypeError
        keys, items = words[::2], words[1::2]
        return {key: from_words([item], arms[1]) for key, item in zip(keys, items, strict=True)}
    if kind is bool and not words:
        return True
    if len(words) != 1:
        raise WrongTypeError
    return from_toml(_scalar_from_word(words[0], kind), kind)


def _convert_scalar(value: Any, kind: type) -> Any:
    if kind is type(None) and value == "None":
        return None
    if type(value) is int and abs(value) >= 10**MAX_DIGITS:
        raise WrongTypeError(_TOO_MANY_DIGITS)
    if kind is float and type(value) is int:
        return _as_float(value)
    if kind is Path and type(value) is str:
        return Path(value)
    assert kind in _SCALAR_NAMES, f"config fields of type {kind} are not supported"
    if type(value) is not kind:
        raise WrongTypeError
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise WrongTypeError("a float, of which the largest is 1.8e308") from None


def _first_fitting(convert: Callable[[Any, Any], Any], raw: Any, arms: tuple[Any, ...]) -> Any:
    """`raw` as the first arm of a union that takes it; None first, or `str` would swallow it."""
    for arm in sorted(arms, key=lambda arm: arm is not type(None)):
        try:
            return convert(raw, arm)
        except WrongTypeError:
            continue
    raise WrongTypeError


def _convert_list(value: Any, origin: type, arms: tuple[Any, ...]) -> Any:
    if not isinstance(value, list):
        raise WrongTypeError
    if origin is list or arms[-1] is Ellipsis:
        return origin(from_toml(item, arms[0]) for item in value)
    if len(value) != len(arms):
        raise WrongTypeError
    return tuple(from_toml(item, arm) for item, arm in zip(value, arms, strict=True))


def _group_words(words: list[str], origin: type, arms: tuple[Any, ...]) -> list[Any]:
    """The nested lists that flat words stand for: `1 2 3 4` is two pairs in a list of pairs."""
    if origin is tuple and arms[-1] is not Ellipsis:
        if len(words) != len(arms):
            raise WrongTypeError
        return [_scalar_from_word(word, arm) for word, arm in zip(words, arms, strict=True)]
    item = arms[0]
    if get_origin(item) is not tuple:
        return [_scalar_from_word(word, item) for word in words]
    size = len(get_args(item))
    if len(words) % size:
        raise WrongTypeError
    chunks = [words[i : i + size] for i in range(0, len(words), size)]
    return [_group_words(chunk, tuple, get_args(item)) for chunk in chunks]


def _scalar_from_word(word: str, kind: Any) -> Any:
    """The TOML value that `word` stands for where a `kind` is expected."""
    if get_origin(kind) is Literal:
        return next((arm for arm in get_args(kind) if str(arm) == word), word)
    if kind is bool:
        return _TRUE_FALSE.get(word.lower(), word)
    if kind is int and len(word) > MAX_DIGITS and word.lstrip("+-").isdecimal():
        raise WrongTypeError(_TOO_MANY_DIGITS)
    if kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            return word
    return word
