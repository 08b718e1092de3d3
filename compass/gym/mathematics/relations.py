"""Equations and inequalities: names with a value, parts of the real line, and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import sympy
from sympy import Expr, Symbol

from compass.gym.mathematics.answer import (
    Alternatives,
    Answer,
    Assignment,
    Conjunction,
    Group,
    Interval,
    RealSet,
    Relation,
    UnreadableError,
    Value,
)
from compass.gym.mathematics.equality import real_value, same_expression
from compass.gym.mathematics.expression import parse_expression
from compass.gym.mathematics.structures import REAL_LINE, Read, as_real_set, split_at
from compass.gym.mathematics.tokens import Token

_SIGNS = {"=": "=", "<": "<", ">": ">"}
_COMMANDS = {"le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "equiv": "=", "in": "in"}
_MAX_ROUNDING = 0.02
"""How far two sides of an ≈ may be apart, relative to the larger."""


def relation_sign(token: Token) -> str | None:
    """`<=` for `\\le`; None for what is no relation."""
    if token.kind == "command":
        return _COMMANDS.get(token.text)
    return _SIGNS.get(token.text) if token.kind == "sign" else None


def relation_signs(tokens: Sequence[Token]) -> list[str]:
    """The relations outside brackets, but for a leading ≈, which is only a rounding."""
    _, joints = split_at(tokens, lambda token: relation_sign(token) is not None)
    return joints[1:] if tokens and tokens[0].text == "approx" else joints


def read_relation(tokens: Sequence[Token], read: Read) -> Answer:
    """The equation, inequality or chain of them that all tokens together are."""
    sides, _ = split_at(tokens, lambda token: relation_sign(token) is not None)
    signs = [sign for token in _outside(tokens) if (sign := relation_sign(token))]
    if not all(sides):
        raise UnreadableError("a relation lacks a side")
    if set(signs) <= {"=", "~"}:
        return _equation(sides, signs, read)
    if signs == ["in"]:
        return _membership(sides[0], read(sides[1]))
    if "in" in signs or "~" in signs:
        raise UnreadableError("relations of several kinds")
    return _inequality([parse_expression(side) for side in sides], signs)


def _outside(tokens: Sequence[Token]) -> list[Token]:
    parts, _ = split_at(tokens, lambda token: relation_sign(token) is not None)
    found, position = [], 0
    for part in parts[:-1]:
        position += len(part)
        found.append(tokens[position])
        position += 1
    return found


def _equation(sides: list[Sequence[Token]], signs: list[str], read: Read) -> Answer:
    name = _name(sides[0])
    if name is not None:
        values = [read(side) for side in sides[1:]]
        return Assignment(name=name, value=_agreeing(values, signs[1:]))
    if _is_label(sides[0]):
        return Assignment(
            name=_written(sides[0]), value=_agreeing([read(s) for s in sides[1:]], signs[1:])
        )
    values = [read(side) for side in sides]
    if all(isinstance(value, Value) and not value.expression.free_symbols for value in values):
        return _agreeing(values, signs)
    if len(values) == 2 and signs == ["="] and _name(sides[1]) is not None:
        return Assignment(name=_name(sides[1]) or "", value=values[0])
    return _relations(values, signs)


def _relations(values: list[Answer], signs: list[str]) -> Answer:
    if "~" in signs or not all(isinstance(value, Value) for value in values):
        raise UnreadableError("an equation of what are not formulas")
    expressions = [value.expression for value in values if isinstance(value, Value)]
    if len(expressions) == 2:
        return Relation(operator="=", difference=expressions[0] - expressions[1])
    return Group(  # an identity a = b = c: every form is the answer
        kind="list",
        items=tuple(
            Relation(operator="=", difference=one - other) for one, other in pairwise(expressions)
        ),
    )


def _agreeing(values: list[Answer], signs: list[str]) -> Answer:
    """Several forms of one value. Errors: `UnreadableError` when they contradict each other."""
    if len(values) == 1:
        return values[0]
    expressions = []
    for value in values:
        if not isinstance(value, Value):
            raise UnreadableError("a chain of equations of what are not values")
        expressions.append(value.expression)
    for one, other, sign in zip(expressions, expressions[1:], signs, strict=False):
        if not (same_expression(one, other) or (sign == "~" and _is_near(one, other))):
            raise UnreadableError("the sides of an equation differ")
    return Alternatives(readings=tuple(values))


def _is_near(one: Expr, other: Expr) -> bool:
    first, second = real_value(one), real_value(other)
    if first is None or second is None:
        return False
    return bool(abs(first - second) <= _MAX_ROUNDING * max(abs(first), abs(second)))


def _name(tokens: Sequence[Token]) -> str | None:
    """A variable, `f(x)`, `AB`: what can be given a value; None for a formula."""
    try:
        expression = parse_expression(tokens)
    except UnreadableError:
        return None
    symbols = expression.free_symbols
    if isinstance(expression, Symbol):
        return str(expression)
    factors = expression.as_ordered_factors()
    if symbols and all(isinstance(factor, Symbol) for factor in factors):
        return _written(tokens)
    return None


def _is_label(tokens: Sequence[Token]) -> bool:
    """`Area`, `∠ABC`, `P(A)`, `|AB|`: words and signs that no formula is made of."""
    return (
        any(token.kind == "word" for token in tokens)
        and not any(token.kind == "number" for token in tokens)
        and not any(token.kind == "sign" and token.text in "+-*/^=" for token in tokens)
        and not any(token.text in ("frac", "sqrt", "not", "no") for token in tokens)
        and not any(token.text.lower() in ("not", "no", "if", "when") for token in tokens)
    )


def _written(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _inequality(sides: list[Expr], signs: list[str]) -> Answer:
    symbols = set().union(*(side.free_symbols for side in sides))
    if len(symbols) == 1:
        variable = symbols.pop()
        real_set = _real_set(sides, signs, variable)
        if real_set is not None:
            return real_set
    relations = [
        _relation(one, other, sign)
        for one, other, sign in zip(sides, sides[1:], signs, strict=False)
    ]
    return relations[0] if len(relations) == 1 else Conjunction(relations=tuple(relations))


def _relation(one: Expr, other: Expr, sign: str) -> Relation:
    match sign:
        case "<":
            return Relation(operator="<", difference=one - other)
        case "<=":
            return Relation(operator="<=", difference=one - other)
        case ">":
            return Relation(operator="<", difference=other - one)
        case ">=":
            return Relation(operator="<=", difference=other - one)
        case "!=":
            return Relation(operator="!=", difference=one - other)
        case _:
            return Relation(operator="=", difference=one - other)


def _real_set(sides: list[Expr], signs: list[str], variable: Symbol) -> RealSet | None:
    """The solutions of a chain in which one side is the variable and the others are numbers."""
    parts: list[Interval] = [REAL_LINE]
    for one, other, sign in zip(sides, sides[1:], signs, strict=False):
        if other == variable and real_value(one) is not None:
            bounds = _ray(_MIRRORED[sign], one)
        elif one == variable and real_value(other) is not None:
            bounds = _ray(sign, other)
        else:
            return None
        parts = intersection(parts, bounds)
    return RealSet(parts=tuple(parts), variable=str(variable))


_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def _ray(sign: str, bound: Expr) -> list[Interval]:
    below = Interval(low=-sympy.oo, high=bound, low_open=True, high_open=sign != "<=")
    above = Interval(low=bound, high=sympy.oo, low_open=sign != ">=", high_open=True)
    match sign:
        case "<" | "<=":
            return [below]
        case ">" | ">=":
            return [above]
        case "!=":
            return [below, above]
        case _:
            return [Interval(low=bound, high=bound, low_open=False, high_open=False)]


def intersection(ones: list[Interval], others: list[Interval]) -> list[Interval]:
    """The common parts of two unions of intervals with numbers at their ends."""
    parts = []
    for one in ones:
        for other in others:
            low, low_open = max(_low(one), _low(other), key=lambda end: (end[0], end[1]))[1:]
            high, high_open = min(_high(one), _high(other), key=lambda end: (end[0], not end[1]))[
                1:
            ]
            parts.append(Interval(low=low, high=high, low_open=low_open, high_open=high_open))
    return [part for part in parts if _is_inhabited(part)]


def _low(part: Interval) -> tuple[Expr, Expr, bool]:
    return _ordered(part.low), part.low, part.low_open


def _high(part: Interval) -> tuple[Expr, Expr, bool]:
    return _ordered(part.high), part.high, part.high_open


def _ordered(end: Expr) -> Expr:
    value = real_value(end)
    if value is None:
        raise UnreadableError("an end that is no real number")
    return value


def _is_inhabited(part: Interval) -> bool:
    low, high = _ordered(part.low), _ordered(part.high)
    return bool(low < high) or (low == high and not part.low_open and not part.high_open)


def _membership(side: Sequence[Token], members: Answer) -> Answer:
    name = _name(side)
    real_set = as_real_set(members)
    if name is None:
        raise UnreadableError("what belongs to the set is no variable")
    if real_set is not None and not isinstance(members, Group):
        return RealSet(parts=real_set.parts, variable=name)
    if isinstance(members, Group) and members.kind == "tuple" and real_set is not None:
        return RealSet(parts=real_set.parts, variable=name)
    return members


def joined_relations(items: Sequence[Answer], joint: str) -> Answer | None:
    """Several relations as one: `x>2 and x<5`, `x<1 or x>3`; None when they are not relations."""
    if all(isinstance(item, Relation | Conjunction) for item in items):
        if joint == "or":
            raise UnreadableError("one of several relations")
        relations: list[Relation] = []
        for item in items:
            relations.extend(item.relations if isinstance(item, Conjunction) else [item])  # type: ignore[list-item]
        return Conjunction(relations=tuple(relations))
    sets = [item for item in items if isinstance(item, RealSet)]
    if (
        len(sets) != len(items)
        or len({item.variable for item in sets}) != 1
        or not sets[0].variable
    ):
        return None
    if joint == "or":
        parts = tuple(part for item in sets for part in item.parts)
    else:
        common = [REAL_LINE]
        for item in sets:
            common = intersection(common, list(item.parts))
        parts = tuple(common)
    return RealSet(parts=parts, variable=sets[0].variable)
