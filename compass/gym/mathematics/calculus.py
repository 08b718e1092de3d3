"""Sums, products, integrals and limits that an answer leaves to be worked out, by latex2sympy."""

from __future__ import annotations

import re

from latex2sympy2_extended import latex2sympy
from sympy import Expr

from compass.gym.mathematics.answer import UnreadableError

_SIGNS = re.compile(r"\\(?:int|iint|oint|sum|prod|lim)(?![A-Za-z])")
_LETTERS = re.compile(r"\\[A-Za-z]+|([A-Za-z])")


def is_calculus(plain: str) -> bool:
    """Whether the formula holds a sign that only latex2sympy reads."""
    return _SIGNS.search(plain) is not None


def parse_calculus(plain: str) -> Expr:
    """The value of the formula, worked out.

    Errors: `UnreadableError` when latex2sympy cannot read all of it, or when a letter occurs as
    a capital and small, which latex2sympy confuses.
    """
    letters = {found[1] for found in _LETTERS.finditer(plain) if found[1]}
    if any(letter.isupper() for letter in letters):
        raise UnreadableError("capital letters beside a sum, an integral or a limit")
    try:
        expression = latex2sympy(plain, normalization_config=None)
    except Exception as error:  # its grammar raises bare `Exception`
        raise UnreadableError(str(error).splitlines()[0]) from error
    if not isinstance(expression, Expr):
        raise UnreadableError(f"{type(expression).__name__} is no formula")
    return expression.doit()
