"""Functions and constants by name, and powers that are not written out when they would be huge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import sympy
from sympy import Expr, Integer, Rational, Symbol

from compass.gym.mathematics.answer import UnreadableError
from compass.gym.mathematics.words import listed

_MAX_BITS = 100_000
_MAX_FACTORIAL = 3_000

CONSTANTS: Mapping[str, Expr] = MappingProxyType(
    {
        "pi": sympy.pi,
        "e": sympy.E,
        "i": sympy.I,
        "imath": sympy.I,
        "infty": sympy.oo,
        "infinity": sympy.oo,
        "inf": sympy.oo,
    }
)
GREEK = listed(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma "
    "tau upsilon phi chi psi omega"
)
_PLAIN: Mapping[str, Callable[..., Expr]] = MappingProxyType(
    {
        "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec,
        "csc": sympy.csc, "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh,
        "coth": sympy.coth, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
        "arccot": sympy.acot, "arcsec": sympy.asec, "arccsc": sympy.acsc, "asin": sympy.asin,
        "acos": sympy.acos, "atan": sympy.atan, "tg": sympy.tan, "ctg": sympy.cot,
        "arctg": sympy.atan, "ln": sympy.log, "exp": sympy.exp, "abs": sympy.Abs, "Re": sympy.re,
        "Im": sympy.im, "arg": sympy.arg, "sqrt": sympy.sqrt, "cbrt": sympy.cbrt,
        "log": lambda x: sympy.log(x) / sympy.log(10), "lg": lambda x: sympy.log(x) / sympy.log(10),
        "floor": sympy.floor, "ceil": sympy.ceiling, "sgn": sympy.sign,
    }
)  # fmt: skip
_SEVERAL: Mapping[str, Callable[..., Expr]] = MappingProxyType(
    {"max": sympy.Max, "min": sympy.Min, "gcd": sympy.gcd, "lcm": sympy.lcm}
)
_INVERSES: Mapping[str, str] = MappingProxyType(
    {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "arccot"}
)
NAMES = frozenset(_PLAIN)
NAMES_OF_SEVERAL = frozenset(_SEVERAL)


def applied(name: str, argument: Expr) -> Expr:
    """`name(argument)`, for a name in `NAMES`. `log` without a base has base 10."""
    return _PLAIN[name](argument)


def applied_to_several(name: str, arguments: list[Expr]) -> Expr:
    """`max`, `min`, `gcd` or `lcm` of its arguments."""
    if name in ("gcd", "lcm"):
        if len(arguments) < 2:
            raise UnreadableError(f"{name} of a single number")
        result = arguments[0]
        for argument in arguments[1:]:
            result = _SEVERAL[name](result, argument)
        return result
    return _SEVERAL[name](*arguments)


def inverse_of(name: str) -> str:
    """The name that `sin^{-1}` stands for. Errors: `UnreadableError` where there is none."""
    if name not in _INVERSES:
        raise UnreadableError(f"{name}^{{-1}} has no one meaning")
    return _INVERSES[name]


def logarithm(argument: Expr, base: Expr) -> Expr:
    """log of `argument` to `base`."""
    return sympy.log(argument) / sympy.log(base)


def power(base: Expr, exponent: Expr) -> Expr:
    """`base**exponent`; where that has more than 100,000 bits, a symbol that stands for it."""
    if exponent.is_Rational and base.is_Rational:
        size = max(abs(int(base.p)), int(base.q)).bit_length()
        if abs(exponent) * (size - (base in (1, -1))) > _MAX_BITS:
            return _opaque("({})^({})", base, exponent)
        if base == 0 and exponent < 0:
            raise UnreadableError("a division by zero")
    elif not exponent.free_symbols and _magnitude(exponent) > _MAX_BITS // 10:
        return _opaque("({})^({})", base, exponent)
    return base**exponent


def _magnitude(number: Expr) -> float:
    try:
        return abs(complex(number.evalf(5)))
    except (TypeError, OverflowError):
        return math.inf if number not in (sympy.oo, -sympy.oo) else 0.0


def factorial(number: Expr, *, double: bool) -> Expr:
    """n! or n!!; a large one is a symbol that stands for it."""
    if number.is_Integer and number > _MAX_FACTORIAL:
        return _opaque("({})!!" if double else "({})!", number)
    if number.is_number and not (number.is_Integer and number >= 0):
        raise UnreadableError(f"{number}! is no number")
    return sympy.factorial2(number) if double else sympy.factorial(number)


def binomial(n: Expr, k: Expr) -> Expr:
    """n over k; a large one is a symbol that stands for it."""
    if n.is_number and not (n.is_Integer and abs(n) <= _MAX_FACTORIAL):
        return _opaque("binomial({},{})", n, k)
    return sympy.binomial(n, k)


def divided(numerator: Expr, denominator: Expr) -> Expr:
    """A quotient. Errors: `UnreadableError` when the denominator is zero."""
    if denominator.is_zero:
        raise UnreadableError("a division by zero")
    return numerator / denominator


def _opaque(form: str, *parts: Expr) -> Expr:
    if any(
        number.p.bit_length() > _MAX_BITS // 10 for part in parts for number in part.atoms(Integer)
    ):
        raise UnreadableError("it is too large")
    return Symbol(form.format(*parts))


def rational(numerator: int, denominator: int) -> Expr:
    """A fraction as sympy has it."""
    return Integer(numerator) if denominator == 1 else Rational(numerator, denominator)
