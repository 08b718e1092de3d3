"""Words and sentences of a text, without models or downloads."""

from __future__ import annotations

import re
import unicodedata

_NAMES = "mr mrs ms dr prof st vs e.g i.e fig gen col sgt capt lt rev hon mt cf approx"
_ABBREVIATIONS = frozenset(_NAMES.split())
"""What a full stop follows within a sentence, in lower case."""

_END = re.compile(r"[.!?…؟۔।॥။]+[\"'”’»)\]*_]*(?=\s|$)|[。！？｡]+")
_LAST_WORD = re.compile(r"[\w.]*$")
_WORD = re.compile(r"\w+")
_CAPITAL_WORD = re.compile(r"\w+(?:[-'’.&/]\w+)*")
_MAX_LOOK_BACK = 12
"""Characters before a full stop that say what kind it is."""
_SPACELESS = ("THAI", "LAO", "KHMER", "MYANMAR", "CJK", "HIRAGANA", "KATAKANA")


def num_words(text: str) -> int:
    """Runs of letters and digits, with the marks that belong to them. Scripts without spaces
    between words have one word a phrase."""
    unmarked = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    return sum(1 for _ in _WORD.finditer(unmarked))


def num_capital_words(text: str) -> int:
    """Words all of whose letters are capital; `WELL-KNOWN` and `DON'T` are one each."""
    return sum(match[0].isupper() for match in _CAPITAL_WORD.finditer(text))


def num_sentences(text: str) -> int:
    """Stretches that end in a full stop, question or exclamation mark, and what is left behind the
    last. A stop after an abbreviation, an initial or the number of a list item ends none."""
    number, start = 0, 0
    for end in _END.finditer(text):
        if _is_inner_stop(text, end.start(), end[0]):
            continue
        number += any(char.isalnum() for char in text[start : end.end()])
        start = end.end()
    return number + any(char.isalnum() for char in text[start:])


def _is_inner_stop(text: str, stop: int, mark: str) -> bool:
    if not mark.startswith(".") or mark.startswith(".."):
        return False
    before = text[max(0, stop - _MAX_LOOK_BACK) : stop]
    _, newline, line = before.rpartition("\n")
    found = _LAST_WORD.search(line)
    word = found[0] if found else ""
    numbers_item = word.isdecimal() and word == line.strip() and (newline or stop <= len(before))
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return bool(word.lower() in _ABBREVIATIONS or is_initial or numbers_item)


def is_spaceless(word: str) -> bool:
    """Whether its script puts no spaces between words, so that a word has no edges to look for."""
    return any(unicodedata.name(char, "").startswith(_SPACELESS) for char in word)
