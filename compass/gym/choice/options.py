"""A row's options, how they are asked, and which of them a short text means."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from compass.errors import UserError

FIELDS = ("options", "choices")
"""Fields of a row that may hold options; the first present does."""

_LETTERS = string.ascii_uppercase


def read_options(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The options in order; None where the row has none.

    A list of at least two texts, its JSON, or an object with the letters A, B, ... as its names.
    Errors: `UserError` saying what they must be.
    """
    name = next((name for name in FIELDS if row.get(name) is not None), None)
    if name is None:
        return None
    value = _from_json(row[name])
    if isinstance(value, Mapping) and sorted(value) == list(_LETTERS[: len(value)]):
        value = [value[letter] for letter in sorted(value)]
    if isinstance(value, list | tuple) and 2 <= len(value) <= len(_LETTERS):
        texts = [str(option).strip() for option in value if isinstance(option, str | int | float)]
        if len(texts) == len(value) and all(texts):
            return tuple(texts)
    raise UserError(
        f"`{name}` is {str(row[name])[:100]!r}; it must be a list of 2 to 26 texts, or the row "
        "must name a `domain` other than choice"
    )


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def asked_with(question: str, options: Sequence[str]) -> str:
    """The question with its options below, `A. text` a line; as it is where they are there."""
    listed = list(zip(_LETTERS, options, strict=False))
    if all(any(f"{a}{mark} {text}" in question for mark in ".):") for a, text in listed):
        return question
    return "\n".join([question.rstrip(), "", *(f"{a}. {text}" for a, text in listed)])


def option_of(reference: str, options: Sequence[str]) -> int | None:
    """Which option a reference answer is: its letter, its text, or its number from 0; None for
    none of them."""
    meant = option_meant(reference, options)
    if meant is None and reference.strip().isdecimal() and int(reference) < len(options):
        return int(reference)
    return meant


_MAX_SHORT = 2_000
"""Characters of a text that may name an option."""
_ALONE = re.compile(r"[^\w]*(?:(?:option|choice)\s*)?[(\[]?([A-Z])[^\w]*", re.IGNORECASE)
_LEADS = re.compile(r"[\s*_(\[]*([A-Z])(?:[.):\]]|\*\*|\s-\s)(.*)", re.DOTALL)
_TEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def option_meant(said: str, options: Sequence[str]) -> int | None:
    """Which option a short text means: a letter alone, the text of exactly one option, or that
    letter with that text behind it; None for anything else, a contradiction among them."""
    said = _TEX.sub(r"\1", said[:_MAX_SHORT])
    alone = _ALONE.fullmatch(said)
    if alone:
        return index_of(alone[1], options)
    same = _with_text(said, options)
    if same is not None:
        return same
    leads = _LEADS.fullmatch(said)
    if leads is None or index_of(leads[1], options) is None:
        return None
    index = index_of(leads[1], options)
    return index if _with_text(leads[2], options) in (None, index) else None


def index_of(letter: str, options: Sequence[str]) -> int | None:
    """The place of a letter's option; None where there are fewer."""
    index = _LETTERS.index(letter.upper())
    return index if index < len(options) else None


def _with_text(said: str, options: Sequence[str]) -> int | None:
    same = [i for i, option in enumerate(options) if _plain(option) == _plain(said)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """Without case, and without white space and punctuation at either end."""
    return re.sub(r"\s+", " ", text).strip(" .,:;!?*_\"'()[]。၊။").casefold()
