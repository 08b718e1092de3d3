"""The final answer of a text that marks none: what its last statement says.

The last clause that announces an answer ("the answer is", คำตอบคือ, 答案是) comes first, then the
last formula between dollar signs, bold text, equation or number of the last sentence that has one.
A number that only counts steps, or that the sentence denies, is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sympy import Rational, Symbol

from compass.gym.mathematics import words
from compass.gym.mathematics.answer import (
    Alternatives,
    Answer,
    Choice,
    UnreadableError,
    Value,
    Words,
)
from compass.gym.mathematics.characters import ascii_mathematics
from compass.gym.mathematics.reading import read_answer
from compass.gym.mathematics.tokens import Token, number_at

_MAX_TAIL = 2_000
"""Characters from the end that are looked at."""
_MAX_BEFORE = 60
"""Characters before a number in which a label or a denial is looked for."""
_MAX_SENTENCES = 12
_MAX_WORDS = 3
"""Of an announced answer in words."""

_HEADING = re.compile(r"^\s*(?:#+\s+|>\s*|[-*•]\s+)", re.MULTILINE)
_ANNOUNCED = re.compile(
    r"\b(?:answer|result|solution|réponse|reponse|résultat|respuesta|resultado|resposta|antwort|ergebnis|risposta|option|choice"
    r"|jawaban|jawapan|đáp án|đáp số|kết quả|sagot|ответ)\b[^.\n$\d=:]{0,60}?"
    r"(?:\b(?:is|are|was|be|equals|est|es|ist|è|é|adalah|ialah|là|ay)\b|[:=])"
    r"|(?:คำตอบ|答案|答え|答|정답|답|উত্তর|उत्तर|الجواب|الإجابة|အဖြေ)[^.\n$\d]{0,20}?"
    r"(?:คือ|เท่ากับ|是|为|為|は|은|는|হল|হলো|है|هو|هي|:|=|(?=[\d$-]))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=[\s*]|$)|\n|;\s")
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<![\\\d])\$(?!\d[\d.,]*(?:\s|$))([^$\n]+?)(?<!\\)\$(?!\d)|\\\((.+?)\\\)",
    re.DOTALL,
)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_DENIAL = re.compile(r"(?:\b(?:not|never|cannot)|n't)\s+(?:\w+\s+){0,2}[$]?$", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:\b(?:step|steps|question|problem|exercise|case|part|figure|fig|equation|eq|line|row|chapter|page"
    r"|section|method|option|example|lemma|theorem|note|attempt|try|no|number)\b\.?|#)\s*\(?$",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^\s*\d+[.)]\s+(?=\S)", re.MULTILINE)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_FILLER = re.compile(
    r"^(?:\W|\b(?:therefore|thus|so|hence|then|exactly|simply|just|about|approximately|equal|equals|to|the|is|a|an"
    r"|only|now|indeed|clearly|still|also|option|number|value|of)\b)*?(?=[-+]?[$€£¥฿₹₫₱₩]?\s?\d)",
    re.IGNORECASE,
)
_OPERATOR = re.compile(
    r"\(|\s*(?:[+*/^=<>!\\|]|-\s?(?:[\d(\\]|[A-Za-z](?![A-Za-z]))|[A-Za-z](?![A-Za-z]))"
)
_DECIMAL = re.compile(r"([-+]?\d+),(\d{1,2})(?!\d|,)(?!\s*[;)])")
_DECIMAL_COMMA = re.compile(r",(\d{1,2})(?![\d,]|\.\d)")
_ATTACHED_WORD = re.compile(r"[A-Za-z]+")
_OPERATION = re.compile(r"\s*[*/^<>](?!\*)|\s\+\s|\s*\\(?!%|[)\]])")
_DIVISOR = re.compile(r"\s?/\s?(\d{1,12})(?![\d.])")
_FOLLOWING_WORD = re.compile(r"\s*(%|\\%|[^\W\d_]+)")
_NOT_A_NUMBER_BEFORE = re.compile(r"[A-Za-z_^\\.,/'-]$")


@dataclass(frozen=True, kw_only=True)
class _Number:
    answer: Answer
    start: int
    end: int


def stated_answer(text: str) -> Answer | None:
    """What the text says last, read whole; None when it says nothing that can be read."""
    text = _HEADING.sub("", ascii_mathematics(text[-_MAX_TAIL:]))
    announced = _announced(text)
    if announced is not None:
        return announced.answer
    whole = _readable(text.strip())
    if whole is not None and not (isinstance(whole, Words) and _has_digit(text)):
        return whole
    return _last_statement(_LIST_NUMBER.sub("", text))


@dataclass(frozen=True, kw_only=True)
class _Announced:
    answer: Answer | None
    """None: an answer is announced but cannot be read."""


def _announced(text: str) -> _Announced | None:
    for found in reversed(list(_ANNOUNCED.finditer(text))):
        clause = _clause(text[found.end() :])
        if not clause:
            continue
        answer = _clause_answer(clause)
        if isinstance(answer, Words) and len(answer.text.split()) > _MAX_WORDS:
            continue
        if answer is not None or _has_digit(clause) or "\\" in clause:
            return _Announced(answer=answer)
    return None


def _clause(text: str) -> str:
    text = text.lstrip(" \t*_:=\n")
    return _SENTENCE_END.split(text, maxsplit=1)[0].strip()


def _clause_answer(clause: str) -> Answer | None:
    plain = clause.replace("**", "").strip()
    if re.match(r"(?:\w+\s+){0,2}(?:not|never)\b", plain, re.IGNORECASE):
        return None
    if _DECIMAL.match(plain):
        readings = (_readable(_DECIMAL.sub(r"\1.\2", plain, count=1)), _readable(plain))
        return Alternatives(readings=tuple(reading for reading in readings if reading is not None))
    answer = _readable(plain)
    if answer is not None and not (isinstance(answer, Words) and _has_digit(plain)):
        return answer
    formulas = [_content(found) for found in _FORMULA.finditer(plain)]
    if formulas:
        return _readable(formulas[0])
    if "=" in plain:
        return _after_equals(plain)
    numbers = list(_numbers(plain))
    filler = _FILLER.match(plain)
    if numbers and filler and numbers[0].start <= filler.end() + 1:
        leads = not _OPERATOR.match(plain, numbers[0].end)
        return numbers[0].answer if leads else None
    return numbers[0].answer if len(numbers) == 1 else None


def _last_statement(text: str) -> Answer | None:
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    for sentence in reversed(sentences[-_MAX_SENTENCES:]):
        if _has_digit(sentence) or _FORMULA.search(sentence) or _BOLD.search(sentence):
            said = _said_in(sentence)
            if said is not None:
                return said.answer
    return None


def _said_in(sentence: str) -> _Announced | None:
    """The answer of one sentence; None when nothing in it can be one."""
    for found in reversed(list(_BOLD.finditer(sentence))):
        answer = None if found[1].rstrip().endswith(":") else _readable(found[1])
        if answer is not None and not isinstance(answer, Words):
            return _Announced(answer=answer)
    formulas = [found for found in _FORMULA.finditer(sentence) if not _is_name(_content(found))]
    numbers = list(_numbers(_BOLD.sub(lambda found: f"  {found[1]}  ", sentence)))
    if formulas and not any(number.start >= formulas[-1].end() for number in numbers):
        return _Announced(answer=_readable(_content(formulas[-1])))
    if formulas:
        outside = [number for number in numbers if number.start >= formulas[-1].end()]
        return _Announced(answer=outside[-1].answer)
    if "=" in sentence:
        return _Announced(answer=_after_equals(sentence))
    return _Announced(answer=numbers[-1].answer) if numbers else None


def _after_equals(text: str) -> Answer | None:
    """What the last equation of a sentence ends with: `x = 5, as step 2 showed` says 5."""
    right = text.rpartition("=")[2]
    clause = re.split(r",\s|\b(?:as|so|because|since|which|and|by|for)\b", right, maxsplit=1)[0]
    answer = _readable(clause)
    if answer is not None and not isinstance(answer, Words):
        return answer
    numbers = list(_numbers(clause))
    if numbers and not clause[: numbers[0].start].strip(" $€£¥฿₹*-"):
        return None if _OPERATOR.match(clause, numbers[0].end) else numbers[0].answer
    return None


def _readable(text: str) -> Answer | None:
    try:
        return read_answer(text)
    except UnreadableError:
        return None


def _content(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None)


def _is_name(formula: str) -> bool:
    answer = _readable(formula)
    if isinstance(answer, Choice):
        return True
    return isinstance(answer, Value) and isinstance(answer.expression, Symbol)


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _numbers(text: str) -> Iterator[_Number]:
    """Numbers of a sentence with their sign, fraction, percent sign and magnitude, in order."""
    position = 0
    while found := re.compile(r"\.?\d").search(text, position):
        start = found.start()
        token, end = number_at(text, start)
        number = None if token is None else _number(text, start, end, token)
        if number is not None:
            yield number
        position = max(end, number.end if number else end)


def _number(text: str, start: int, end: int, token: Token) -> _Number | None:
    before = text[max(0, start - _MAX_BEFORE) : start].rstrip("$€£¥฿₹₫₱₩")
    negative = bool(re.search(r"(?:^|[\s(=:$*])-$", before))
    if negative:
        before = before[:-1]
    if _NOT_A_NUMBER_BEFORE.search(before) and not before.endswith(("**", "...")):
        return None
    if _DENIAL.search(before) or _LABEL.search(before) or _ORDINAL.match(text, end):
        return None
    attached = _ATTACHED_WORD.match(text, end)
    if attached and not words.may_be_unit(attached[0], marked=False):
        return None
    if _OPERATION.match(text, end) and not _DIVISOR.match(text, end):
        return None
    assert token.number is not None, "number tokens hold their value"
    value = Rational(token.number.numerator, token.number.denominator)
    comma = _DECIMAL_COMMA.match(text, end) if token.is_integer else None
    values = [value]
    if comma:
        decimal = value + Rational(int(comma[1]), 10 ** len(comma[1]))
        values, end = [decimal, Rational(int(comma[1]))], comma.end()
    elif divisor := _DIVISOR.match(text, end):
        if int(divisor[1]) == 0:
            return None
        values, end = [value / int(divisor[1])], divisor.end()
    sign = -1 if negative else 1
    answer, end = _scaled(text, end, sign * values[0])
    return _Number(answer=answer, start=start, end=end)


def _scaled(text: str, end: int, value: Rational) -> tuple[Answer, int]:
    word = _FOLLOWING_WORD.match(text, end)
    if word is None:
        return Value(expression=value), end
    if word[1] in ("%", "\\%") or word[1].casefold() in words.PERCENT:
        return Value(expression=value / 100, percent=True), word.end()
    factor, _ = words.leading_magnitude(word[1])
    if factor == 1:
        return Value(expression=value), end
    return Value(expression=value * Rational(factor.numerator, factor.denominator)), word.end()
