"""An answer as tokens. Numbers are read here, exactly, in every way of grouping their digits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from compass.gym.mathematics.answer import UnreadableError
from compass.gym.mathematics.markup import TEXT_BEGINS, TEXT_ENDS

Kind = Literal["number", "word", "command", "sign"]


@dataclass(frozen=True, slots=True)
class Token:
    """One sign, word, LaTeX command or number."""

    kind: Kind
    text: str
    """As written; a command without its backslash."""
    number: Fraction | None = None
    marked: bool = False
    """A word that stood inside `\\text{...}`."""
    spaced: bool = False
    """White space came before it."""

    @property
    def is_integer(self) -> bool:
        """Written with digits alone, so that it can be the whole part of a mixed number."""
        return self.text.isdigit()


_SPACE = re.compile(r"[\s~]+")
_MIXED = re.compile(r"(\d{1,12})\s+(\d{1,12})\s*/\s*(\d{1,12})(?![\d.,]*\d)")
_RECURRING = re.compile(r"(\d*)\.(\d*)\((\d+)\)(?![\d(])")
_ENDLESS = re.compile(r"(\d*)\.(\d+)\s*\.\.\.")
_GROUPED = re.compile(
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?![\d]|,\d)(?:\.\d+)?(?:[eE][-+]?\d+(?![\w.]))?"
)
_GROUPED_BY_SPACE = re.compile(r"[1-9]\d{0,2}(?:[ '~_]\d{3})+(?!\d|[ '~_]\d|\s*/\s*\d)(?:\.\d+)?")
_GROUPED_BY_DOT = re.compile(r"[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])(?:,\d+)?(?!\d)")
_EUROPEAN = re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?![\d,])")
_PLAIN = re.compile(r"(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+(?![\w.^]))?")
_WORD = re.compile(
    r"[^\W\d_]+(?:[\u0300-\u036f\u0900-\u0dff\u0e31-\u0e4e\u0eb1-\u0ecd\u1000-\u109f\u1780-\u17d3]+[^\W\d_]*)*"
)
_WORD_OF_TEXT = re.compile(_WORD.pattern + r"(?:['-](?:" + _WORD.pattern + r"))*")
_COMMAND = re.compile(r"\\([A-Za-z]+|[{}|]|\\)")
_MAX_DEPTH = 20
_MAX_EXPONENT = 100_000
_OPENING, _CLOSING = ("(", "[", "\\{"), (")", "]", "\\}")


def tokenize(text: str) -> tuple[Token, ...]:
    """Tokens of an answer whose markup was made plain.

    A comma groups digits only outside brackets: `1,234` is a number, `(1,234)` a pair.
    Errors: `UnreadableError` for an unknown sign, or decimals that go on in no pattern.
    """
    tokens: list[Token] = []
    position, depth, marked, spaced = 0, 0, False, False
    while position < len(text):
        character = text[position]
        if found := _SPACE.match(text, position):
            if "~" in found[0] and not tokens:
                raise UnreadableError("a leading ~ can mean about or not")
            position, spaced = found.end(), True
            continue
        if character in (TEXT_BEGINS, TEXT_ENDS):
            marked, spaced, position = character == TEXT_BEGINS, True, position + 1
            continue
        token, position = _next(text, position, marked, spaced, depth)
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth > _MAX_DEPTH:
            raise UnreadableError("brackets are nested too deeply")
        tokens.append(token)
        spaced = False
    return tuple(tokens)


def _next(text: str, position: int, marked: bool, spaced: bool, depth: int) -> tuple[Token, int]:
    character = text[position]
    if character.isdigit() or (character == "." and text[position + 1 : position + 2].isdigit()):
        return _number(text, position, spaced, grouped=depth == 0)
    word = (_WORD_OF_TEXT if marked else _WORD).match(text, position)
    if word:
        return Token("word", word[0], marked=marked, spaced=spaced), word.end()
    command = _COMMAND.match(text, position)
    if command:
        name = command[1]
        if name in "{}|\\":
            return Token("sign", f"\\{name}", spaced=spaced), command.end()
        return Token("command", name, spaced=spaced), command.end()
    if text.startswith(("**", "..."), position):
        length = 2 if character == "*" else 3
        return Token("sign", text[position : position + length], spaced=spaced), position + length
    return Token("sign", character, marked=marked, spaced=spaced), position + 1


def number_at(text: str, position: int) -> tuple[Token | None, int]:
    """The number that starts here in running text, and where it ends; None when it has no value."""
    try:
        return _number(text, position, spaced=False, grouped=True)
    except UnreadableError:
        found = _PLAIN.match(text, position)
        return None, found.end() if found else position + 1


def _number(text: str, position: int, spaced: bool, *, grouped: bool) -> tuple[Token, int]:
    if found := _MIXED.match(text, position):
        whole, numerator, denominator = map(int, found.groups())
        if 0 < numerator < denominator:
            value = whole + Fraction(numerator, denominator)
            return Token("number", found[0], value, spaced=spaced), found.end()
    if found := _ENDLESS.match(text, position):
        return Token("number", found[0], _endless(*found.groups()), spaced=spaced), found.end()
    if found := _RECURRING.match(text, position):
        value = recurring(*found.groups())
        return Token("number", found[0], value, spaced=spaced), found.end()
    for pattern, digits in _GROUPINGS if grouped else _GROUPINGS[2:]:
        if found := pattern.match(text, position):
            value = Fraction(found[0].translate(digits))
            return Token("number", found[0], value, spaced=spaced), found.end()
    found = _PLAIN.match(text, position)
    assert found is not None, "a number starts with a digit"
    return Token("number", found[0], exact(found[0]), spaced=spaced), found.end()


_NO_SEPARATORS = str.maketrans("", "", ", '~_")
_GROUPINGS = (
    (_EUROPEAN, str.maketrans(",", ".", ".")),
    (_GROUPED, _NO_SEPARATORS),
    (_GROUPED_BY_DOT, str.maketrans(",", ".", ".")),
    (_GROUPED_BY_SPACE, _NO_SEPARATORS),
)


def exact(digits: str) -> Fraction:
    """A decimal in plain or e-notation as a fraction. Errors: `UnreadableError` when it is huge."""
    mantissa, _, exponent = digits.lower().partition("e")
    if exponent and abs(int(exponent)) > _MAX_EXPONENT:
        raise UnreadableError(f"{digits} is too large")
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def recurring(whole: str, fixed: str, period: str) -> Fraction:
    """`1.2(34)`: the digits of the period go on for ever."""
    scale = 10 ** len(fixed)
    head = Fraction(int((whole or "0") + fixed), scale)
    return head + Fraction(int(period), scale * (10 ** len(period) - 1))


def _endless(whole: str, decimals: str) -> Fraction:
    """`0.333...`: a digit three times, or a longer block twice, is a period."""
    for length in range(1, len(decimals) // 2 + 1):
        repeats = 3 if length == 1 else 2
        period = decimals[-length:]
        if decimals.endswith(period * repeats):
            return recurring(whole, decimals, period)
    raise UnreadableError(f"{whole}.{decimals}... does not say how it goes on")
