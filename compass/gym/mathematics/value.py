"""One number or formula, with what may stand around it: currency, percent, units, a modulus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from sympy import Expr, Rational

from compass.gym.mathematics import functions, words
from compass.gym.mathematics.answer import UnreadableError, Value
from compass.gym.mathematics.expression import parse_expression
from compass.gym.mathematics.tokens import Token

_DEGREE = "\x05"
_ABOUT = frozenset({"approx", "sim"})


def read_value(tokens: Sequence[Token]) -> Value:
    """The value that all tokens together are. Errors: `UnreadableError`."""
    tokens, currency = _without_currency(list(tokens))
    value = _measured(tokens)
    return replace(value, unit=currency) if currency and not value.unit else value


def _measured(tokens: list[Token]) -> Value:
    tokens, modulus = _without_modulus(tokens)
    if not tokens:
        raise UnreadableError("there is no number")
    if _ends_with_degrees(tokens):
        tokens = tokens if tokens[-1].text == _DEGREE else tokens[:-1]
        return Value(expression=_parsed(tokens[:-1]), unit="degree", modulus=modulus)
    if _is_percent(tokens[-1]):
        expression = parse_expression(tokens[:-1])
        return Value(expression=expression / 100, percent=True, modulus=modulus)
    for start in range(1, len(tokens)):
        if _starts_unit(tokens[start:]):
            unit = _unit(tokens[start:])
            if unit is not None:
                factor, name = unit
                expression = parse_expression(tokens[:start])
                return Value(
                    expression=expression * Rational(factor.numerator, factor.denominator),
                    unit=name,
                    modulus=modulus,
                )
    return Value(expression=parse_expression(tokens), modulus=modulus)


def _ends_with_degrees(tokens: Sequence[Token]) -> bool:
    """`45°` or `20°C`, but not `sin 30°`, which is a number."""
    if any(token.text in functions.NAMES for token in tokens):
        return False
    if len(tokens) > 2 and tokens[-1].text in ("C", "F"):
        tokens = tokens[:-1]
    return len(tokens) > 1 and tokens[-1].text == _DEGREE


def _parsed(tokens: Sequence[Token]) -> Expr:
    """A number before a degree sign; a sum there is a sum of degrees and plain numbers."""
    if any(token.text in "+-" for token in tokens[1:]):
        raise UnreadableError("only its last term has a degree sign")
    return parse_expression(tokens)


def _without_currency(tokens: list[Token]) -> tuple[list[Token], str]:
    """The tokens without signs of money and its names before the number, and what was left out."""
    if tokens and tokens[0].kind == "command" and tokens[0].text in _ABOUT:
        tokens = tokens[1:]
    kept = [token for token in tokens if token.text not in words.CURRENCY_SIGNS]
    signs = [token.text for token in tokens if token.text in words.CURRENCY_SIGNS]
    currency = signs[0] if signs else ""
    start = 1 if kept and kept[0].text in ("+", "-") else 0
    named = kept[start : start + 1]
    if named and named[0].kind == "word":
        end = (
            start + 2
            if [token.text for token in kept[start + 1 : start + 2]] == ["."]
            else start + 1
        )
        is_money = words.is_currency(named[0].text) or (signs and named[0].text in words.COUNTRIES)
        if is_money and end < len(kept) and kept[end].kind == "number":
            currency = currency or named[0].text.casefold()
            del kept[start:end]
    return kept, currency


def _without_modulus(tokens: list[Token]) -> tuple[list[Token], Expr | None]:
    for start, token in enumerate(tokens):
        if start and token.text in ("pmod", "mod", "bmod"):
            end = start - (tokens[start - 1].text == "(")
            inner = [t for t in tokens[start + 1 :] if t.text not in ("{", "}", "(", ")")]
            return tokens[:end], parse_expression(inner)
    return tokens, None


def _is_percent(token: Token) -> bool:
    return token.text == "%" or (token.kind == "word" and token.text.casefold() in words.PERCENT)


def _starts_unit(tokens: Sequence[Token]) -> bool:
    """Whether a unit can begin here: a word that is no product of variables, or a fraction of
    such words."""
    token = tokens[0]
    if token.kind == "command" and token.text == "frac":
        return len(tokens) > 2 and tokens[2].marked
    if token.kind != "word":
        return False
    is_word = token.spaced or token.marked or not token.text.isascii() or len(token.text) > 1
    return is_word or _is_quotient_of_units(tokens)


def _is_quotient_of_units(tokens: Sequence[Token]) -> bool:
    """`m/s`: single letters that are units only together."""
    texts = [token.text for token in tokens[:3]]
    return (
        len(texts) == 3
        and texts[1] == "/"
        and texts[0] in "mgLNJ"
        and texts[2] in ("s", "min", "h", "L", "m", "C")
    )


def _unit(tokens: Sequence[Token]) -> tuple[Fraction, str] | None:
    """Magnitude and unit that the tokens after a number are; None when they are something else."""
    factor = Fraction(1)
    names: list[str] = []
    for position, token in enumerate(tokens):
        if token.kind != "word":
            if not _continues_unit(tokens, position):
                return None
            names += [f"^{token.text}"] if token.kind == "number" else []
            continue
        scale, rest = (Fraction(1), token.text) if names else words.leading_magnitude(token.text)
        factor *= scale
        if token.text == "times" and not names and position == len(tokens) - 1:
            names.append(token.text)
        elif token.text.casefold() == "squared" and names:
            names.append("^2")
        elif rest and words.may_be_unit(rest, marked=_is_marked(tokens, position)):
            names.append(rest.casefold())
        elif rest:
            return None
    return factor, " ".join(names)


def _is_marked(tokens: Sequence[Token], position: int) -> bool:
    """Whether a word is text, by its markup or because it follows one: no product of variables."""
    token = tokens[position]
    if token.marked or _is_quotient_of_units(tokens):
        return True
    return position > 0 and (len(token.text) > 1 or words.is_abbreviation(token.text))


def _continues_unit(tokens: Sequence[Token], position: int) -> bool:
    """Powers, quotients and products of units, as in `km/h` and `m s^{-1}`."""
    token = tokens[position]
    if token.kind == "number":
        before = [t.text for t in tokens[max(0, position - 3) : position]]
        return token.text in ("2", "3", "1") and "^" in before
    if token.kind == "command":
        return token.text in ("cdot", "frac")
    if token.text in ("/", ".", "(", ")"):
        return True
    return token.text in ("^", "{", "}", "-")
