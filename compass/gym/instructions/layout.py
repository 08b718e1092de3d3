"""Constraints on the layout of an answer: paragraphs, lists, marks, how it begins and ends.

No pattern here takes more than linear time: a policy must not be able to buy a timeout.
"""

from __future__ import annotations

import json
import re

_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"\A```(?:json)?|```\Z", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_PARAGRAPH_RULE = re.compile(r"\s?\* ?\* ?\*\s?")
_SINGLE, _DOUBLE = re.compile(r"\*[^\n*]*\*"), re.compile(r"\*\*[^\n*]*\*\*")
_RESPONSE_RULE = "*" * 6
_WORD_END = re.compile("[.,?!'\"]")


def number_paragraphs(answer: str, *, num_paragraphs: int) -> bool:
    """Paragraphs between `***` or `* * *`, none of them empty."""
    parts = _PARAGRAPH_RULE.split(answer)
    inner = parts[not parts[0].strip() : len(parts) - (not parts[-1].strip())]
    return len(inner) == num_paragraphs and all(part.strip() for part in inner)


def first_word(answer: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between blank lines, and the word that one of them begins with."""
    parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"").lower()
    return _WORD_END.split(word)[0] == first_word.lower()


def number_placeholders(answer: str, *, num_placeholders: int) -> bool:
    """Words in square brackets, at least so many."""
    return len(_PLACEHOLDER.findall(answer)) >= num_placeholders


def postscript(answer: str, *, postscript_marker: str) -> bool:
    """The marker occurs, in whatever case, with or without spaces between its letters."""
    letters = [re.escape(char) for char in postscript_marker if not char.isspace()]
    return re.search(r"\s?".join(letters), answer, re.IGNORECASE) is not None


def number_bullets(answer: str, *, num_bullets: int) -> bool:
    """Lines that begin with `*` (but not `**`) or `-`, exactly so many."""
    lines = [line.strip() for line in answer.split("\n")]
    bullets = [
        line
        for line in lines
        if line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*"))
    ]
    return len(bullets) == num_bullets


def constrained_response(answer: str) -> bool:
    """One of IFEval's three sentences occurs."""
    return any(choice in answer for choice in _CHOICES)


def number_highlights(answer: str, *, num_highlights: int) -> bool:
    """Stretches of a line between `*` or `**`, at least so many."""
    marked = _SINGLE.findall(answer) + _DOUBLE.findall(answer)
    return sum(bool(part.strip("*").strip()) for part in marked) >= num_highlights


def multiple_sections(answer: str, *, section_spliter: str, num_sections: int) -> bool:
    """Headings such as `Section 2`, at least so many. The argument's name is IFEval's."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d", answer)) >= num_sections


def json_format(answer: str) -> bool:
    """JSON as a whole, in a fence or not."""
    try:
        json.loads(_FENCE.sub("", answer.strip()).strip(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def title(answer: str) -> bool:
    """A line has a title within `<<` and `>>`."""
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<> \t\r"):
            return True
    return False


def two_responses(answer: str) -> bool:
    """Two answers that differ, with `******` between them."""
    parts = [part.strip() for part in answer.split(_RESPONSE_RULE)]
    given = [part for part in parts if part]
    return len(given) == 2 and all(parts[1:-1]) and given[0] != given[1]


def repeat_prompt(answer: str, *, prompt_to_repeat: str) -> bool:
    """The answer begins with the request, in whatever case."""
    return answer.strip().lower().startswith(prompt_to_repeat.lower())


def end_phrase(answer: str, *, end_phrase: str) -> bool:
    """The answer ends with the phrase, in whatever case, quotation marks aside."""
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(answer: str) -> bool:
    """The whole is within double quotation marks."""
    return len(answer.strip()) > 1 and answer.strip()[0] == answer.strip()[-1] == '"'
