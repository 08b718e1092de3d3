"""What a constraint may be given, and what is wrong with what it was given."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from compass.gym.instructions.language import LANGUAGES, SCRIPTS

Argument = Callable[[object], object]
"""The value in its one form. Raises `ValueError` that says what it must be."""


def count(value: object) -> int:
    """An integer from 0 on; tables give it as 3.0."""
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError("a whole number from 0 on")
    return number


def place(value: object) -> int:
    """An integer from 1 on."""
    if count(value) == 0:
        raise ValueError("a whole number from 1 on")
    return count(value)


def text(value: object) -> str:
    """Text that is not blank, without white space around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text that is not empty")
    return value.strip()


def texts(value: object) -> tuple[str, ...]:
    """At least one text."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a list of texts that is not empty")
    return tuple(text(item) for item in value)


def character(value: object) -> str:
    """One character; IFEval's are letters, `#` and `!`."""
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError("one character")
    return value.strip()


def language(value: object) -> str:
    """An ISO 639-1 code that can be told."""
    if not isinstance(value, str) or value not in LANGUAGES | SCRIPTS.keys():
        raise ValueError(f"one of {', '.join(sorted(LANGUAGES | SCRIPTS.keys()))}")
    return value


RELATIONS = MappingProxyType(
    {
        "less than": lambda number, limit: number < limit,
        "at least": lambda number, limit: number >= limit,
        "at most": lambda number, limit: number <= limit,
        "exactly": lambda number, limit: number == limit,
        # open-instruct's: within a tenth
        "around": lambda number, limit: abs(number - limit) <= max(round(limit / 10), 1),
    }
)
"""IFEval has the first two; data sets made after it have the others."""


def relation(value: object) -> str:
    """A name in `RELATIONS`."""
    if not isinstance(value, str) or value not in RELATIONS:
        raise ValueError(f"one of {', '.join(RELATIONS)}")
    return value
