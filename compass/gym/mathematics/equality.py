"""Whether two formulas are the same, by their values to 30 digits, never by an absolute tolerance.

Rationals are compared exactly. Everything else is evaluated at a few fixed points of either sign
(one without variables): two formulas of answers' size that agree to 30 digits at all of them are
the same for any practical purpose, and a difference shows at the first point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sympy
from sympy import Expr, Float, Rational, Symbol

_DIGITS = 40
_AGREEMENT = Float("1e-30", _DIGITS)
_NUM_POINTS = 4
_NEEDED_POINTS = 2


def same_expression(one: Expr, other: Expr) -> bool:
    """Whether the two formulas have the same value wherever both have one."""
    if one == other:
        return True
    if one.is_Rational and other.is_Rational:
        return False
    if one.has(sympy.oo, -sympy.oo, sympy.nan, sympy.zoo) or other.has(sympy.oo, -sympy.oo):
        return False
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    num_compared = 0
    for point in _points(symbols):
        first, second = _value(one, point), _value(other, point)
        if first is None or second is None:
            continue
        if not _agree(first, second):
            return False
        num_compared += 1
    return num_compared >= (_NEEDED_POINTS if symbols else 1)


def constant_ratio(one: Expr, other: Expr) -> Expr | None:
    """The number that `one` is of `other` everywhere; None when it changes or one of them is 0."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    ratio: Expr | None = None
    num_compared = 0
    for point in _points(symbols):
        first, second = _value(one, point), _value(other, point)
        if first is None or second is None:
            continue
        if first == 0 or second == 0:
            return None
        here = first / second
        if ratio is not None and not _agree(ratio, here):
            return None
        ratio = here
        num_compared += 1
    return ratio if num_compared >= (_NEEDED_POINTS if symbols else 1) else None


def real_value(expression: Expr) -> Expr | None:
    """The value of a formula without variables when it is real, infinities included."""
    if expression in (sympy.oo, -sympy.oo) or expression.is_Rational:
        return expression
    if expression.free_symbols:
        return None
    value = _value(expression, {})
    return value if value is not None and value.is_real else None


def _points(symbols: list[Symbol]) -> Iterator[Mapping[Symbol, Expr]]:
    for number in range(_NUM_POINTS if symbols else 1):
        yield {
            symbol: Rational(
                (-1) ** (number + index * (number // 2)) * (37 + 29 * index + 13 * number),
                53 + 5 * index,
            )
            for index, symbol in enumerate(symbols)
        }


def _value(expression: Expr, point: Mapping[Symbol, Expr]) -> Expr | None:
    """The value to 40 digits; None when there is none here."""
    try:
        value = expression.evalf(_DIGITS, subs=dict(point))
    except (ArithmeticError, ValueError, TypeError, NotImplementedError):
        return None
    real, imaginary = value.as_real_imag()
    if not (_is_finite(real) and _is_finite(imaginary)):
        return None
    return _settled(real) + sympy.I * _settled(imaginary)


def _is_finite(part: Expr) -> bool:
    return bool(part.is_Number and part.is_finite)


def _settled(part: Expr) -> Expr:
    """Zero where evaluation found no significant digit, however hard it tried."""
    return sympy.Integer(0) if part.is_Float and part._prec == 1 else part


def _agree(one: Expr, other: Expr) -> bool:
    scale = max(abs(one), abs(other))
    return bool(abs(one - other) <= scale * _AGREEMENT)
