"""Constraints on words and letters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compass.gym.instructions.arguments import RELATIONS
from compass.gym.instructions.counting import (
    is_spaceless,
    num_capital_words,
    num_sentences,
    num_words,
)
from compass.gym.instructions.language import is_in

_COMMAS = re.compile("[,，،]")  # noqa: RUF001 (full-width and Arabic: no way round)


def existence(answer: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword occurs, in whatever case; as a part of a word, too."""
    return all(keyword.lower() in answer.lower() for keyword in keywords)


def frequency(answer: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """How often the keyword occurs; as a part of a word, too."""
    return RELATIONS[relation](answer.lower().count(keyword.lower()), frequency)


def forbidden_words(answer: str, *, forbidden_words: Sequence[str]) -> bool:
    """None occurs as a whole word; in scripts without spaces, anywhere."""
    return not any(_has_word(answer.lower(), word.lower()) for word in forbidden_words)


def _has_word(answer: str, word: str) -> bool:
    if is_spaceless(word):
        return word in answer
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer) is not None


def letter_frequency(answer: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """How often a character occurs, in either case."""
    return RELATIONS[let_relation](answer.lower().count(letter.lower()), let_frequency)


def capital_words(answer: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """How many words are in capitals."""
    return RELATIONS[capital_relation](num_capital_words(answer), capital_frequency)


def english_capital(answer: str) -> bool:
    """English in capitals; small letters are shown to langdetect, which knows no others well."""
    return answer.isupper() and is_in(answer.lower(), "en")


def english_lowercase(answer: str) -> bool:
    """English in small letters."""
    return answer.islower() and is_in(answer, "en")


def response_language(answer: str, *, language: str) -> bool:
    """The language that most of the answer is in."""
    return is_in(answer, language)


def no_comma(answer: str) -> bool:
    """No comma of any script."""
    return _COMMAS.search(answer) is None


def number_words(answer: str, *, num_words: int, relation: str) -> bool:
    """How many words there are."""
    return RELATIONS[relation](_num_words(answer), num_words)


def number_sentences(answer: str, *, num_sentences: int, relation: str) -> bool:
    """How many sentences there are."""
    return RELATIONS[relation](_num_sentences(answer), num_sentences)


_num_words, _num_sentences = num_words, num_sentences  # arguments have the same names
