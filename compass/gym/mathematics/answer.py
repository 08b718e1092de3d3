"""What a final answer can be, once read. Every record holds all of it; nothing is left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sympy import Expr, Rational, Symbol


class UnreadableError(Exception):
    """The text is not, as a whole, an answer in a notation that is known here."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number or a formula."""

    expression: Expr
    """Exact; a percentage is already divided by 100."""
    percent: bool = False
    unit: str = ""
    """What it counts or measures, in lower case; empty when nothing was written."""
    modulus: Expr | None = None
    """`6 \\pmod 7`."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Something that is said rather than computed: `no solution`, `July 4`, `3:45 PM`."""

    text: str
    """Single spaces; in lower case unless it holds mathematical signs."""
    product: Expr | None = None
    """A short run of letters is also read as a product of variables."""
    spelled: bool = False
    """Nobody would take it for a word: a rearrangement of its letters is the same product."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One or several letters of a multiple choice, `(B)` or `B) 12` or `AC`."""

    letters: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """`3:4`; also a time of day when it looks like one."""

    terms: tuple[Value, ...]
    text: str
    is_clock: bool


@dataclass(frozen=True, kw_only=True)
class Group:
    """Several answers. `list` (bare commas) and `set` (braces) have no order, `tuple` has."""

    kind: Literal["list", "set", "tuple"]
    items: tuple[Answer, ...]
    brackets: str = ""
    """`()`, `[]`, `[)` or `(]` of a tuple; other than `()` and `[]` it can only be an interval."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Rows of entries, whatever its brackets."""

    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A connected part of the real line."""

    low: Expr
    high: Expr
    low_open: bool
    high_open: bool


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """A union of intervals, of a variable if one was named."""

    parts: tuple[Interval, ...]
    variable: str = ""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """`x = 3`, `\\text{Area} = 25`, `AB = 5`: a name and what it is."""

    name: str
    value: Answer


@dataclass(frozen=True, kw_only=True)
class Relation:
    """`difference operator 0` that is neither an assignment nor an interval."""

    operator: Literal["=", "<", "<=", "!="]
    difference: Expr


@dataclass(frozen=True, kw_only=True)
class Conjunction:
    """Relations that hold together: `a<b<c`, a system of equations."""

    relations: tuple[Relation, ...]


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """The same answer written several times: `\\frac{1}{2} = 0.5`, `3,5` in a French sentence."""

    readings: tuple[Answer, ...]


Answer = (
    Value | Words | Choice | Ratio | Group | Matrix | RealSet | Assignment | Relation
    | Conjunction | Alternatives
)  # fmt: skip

_MAX_BITS = 10_000
"""Python refuses to write integers of more than some 14,000 in decimal digits."""


def written(answer: Answer) -> str:
    """An answer as one line, the same for what means the same as far as its exact form tells: `1/2`
    for 0.5 and 50 % alike, lists and sets in one order, `x = 3` is 3. It stands in samples, and is
    what a majority is counted of."""
    match answer:
        case Value():
            modulus = "" if answer.modulus is None else f" mod {_text(answer.modulus)}"
            return f"{_text(answer.expression)}{modulus}"
        case Words():
            return answer.text
        case Choice():
            return ",".join(sorted(answer.letters))
        case Ratio():
            return ":".join(map(written, answer.terms))
        case Group():
            return _written_group(answer)
        case Matrix():
            return f"[{'; '.join(', '.join(map(written, row)) for row in answer.rows)}]"
        case RealSet():
            return " or ".join(map(_written_interval, answer.parts))
        case Assignment():
            return written(answer.value)
        case Relation():
            return f"{_text(answer.difference)} {answer.operator} 0"
        case Conjunction():
            return " and ".join(sorted(map(written, answer.relations)))
        case Alternatives():
            return written(answer.readings[0])


def _written_group(group: Group) -> str:
    items = [written(item) for item in group.items]
    if group.kind != "tuple":
        return ", ".join(sorted(items))
    brackets = group.brackets or "()"
    return f"{brackets[0]}{', '.join(items)}{brackets[-1]}"


def _written_interval(part: Interval) -> str:
    opening, closing = "(" if part.low_open else "[", ")" if part.high_open else "]"
    return f"{opening}{_text(part.low)}, {_text(part.high)}{closing}"


def _text(expression: Expr) -> str:
    """In sympy's order, with integers that are too long for digits in hexadecimal."""
    long = {
        number: Symbol(f"{number.p:#x}" if number.q == 1 else f"{number.p:#x}/{number.q:#x}")
        for number in expression.atoms(Rational)
        if max(int(number.p).bit_length(), int(number.q).bit_length()) > _MAX_BITS
    }
    return str(expression.xreplace(long))
