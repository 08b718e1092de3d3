"""Whether an answer is the reference. False wherever that is not certain."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr

from compass.gym.mathematics import words
from compass.gym.mathematics.answer import (
    Alternatives,
    Answer,
    Assignment,
    Choice,
    Conjunction,
    Group,
    Interval,
    Matrix,
    Ratio,
    RealSet,
    Relation,
    Value,
    Words,
)
from compass.gym.mathematics.equality import constant_ratio, same_expression
from compass.gym.mathematics.structures import as_real_set


def same_answer(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same; symmetric."""
    if isinstance(one, Alternatives):
        return any(same_answer(reading, other) for reading in one.readings)
    if isinstance(other, Alternatives):
        return any(same_answer(one, reading) for reading in other.readings)
    if isinstance(one, Assignment) and isinstance(other, Assignment):
        same_name = one.name == other.name
        return (same_name and same_answer(one.value, other.value)) or _same_curve(one, other)
    if isinstance(one, Assignment):
        return _same_as_assigned(one, other)
    if isinstance(other, Assignment):
        return _same_as_assigned(other, one)
    if type(one) is type(other):
        return _same_kind(one, other)
    return _across_kinds(one, other) or _across_kinds(other, one)


def _same_kind(one: Answer, other: Answer) -> bool:
    match one, other:
        case Value(), Value():
            return _same_value(one, other)
        case Words(), Words():
            return _same_words(one, other)
        case Choice(), Choice():
            return one.letters == other.letters
        case Ratio(), Ratio():
            return _same_ratio(one, other)
        case Group(), Group():
            return _same_group(one, other)
        case Matrix(), Matrix():
            return _same_matrix(one, other)
        case RealSet(), RealSet():
            return _same_real_set(one, other)
        case Relation(), Relation():
            return _same_relation(one, other)
        case Conjunction(), Conjunction():
            return _matched(one.relations, other.relations)
    return False


def _across_kinds(one: Answer, other: Answer) -> bool:
    match one, other:
        case Choice(), Value():
            return other.expression == sympy.Mul(*map(sympy.Symbol, one.letters))
        case Words(), Value():
            return one.product is not None and same_expression(one.product, other.expression)
        case Ratio(), Value() if len(one.terms) == 2 and not one.is_clock:
            quotient = _quotient(one)
            if quotient is None or other.expression.is_Integer:
                return False
            return same_expression(quotient, other.expression)
        case Group(), RealSet():
            members = as_real_set(one)
            return members is not None and _same_real_set(members, other)
        case Group(), Matrix() if one.kind == "tuple":
            entries = _vector(other)
            return entries is not None and _in_order(one.items, entries)
        case Group(), _ if len(one.items) == 1 and one.kind != "tuple":
            return same_answer(one.items[0], other)
        case Words(), Choice() if one.product is not None:
            return False
    return False


def _same_value(one: Value, other: Value) -> bool:
    if not words.same_unit(one.unit, other.unit) and not one.expression == other.expression == 0:
        return False
    if one.modulus is not None and other.modulus is not None:
        difference = one.expression - other.expression
        return same_expression(one.modulus, other.modulus) and bool(
            (difference / one.modulus).is_integer
        )
    if same_expression(one.expression, other.expression):
        return True
    if one.percent != other.percent:
        percent, plain = (one, other) if one.percent else (other, one)
        written = percent.expression * 100
        # "What percentage ...?" is answered by 28 as well as by 28 %.
        return bool(written.is_Integer and abs(written) > 1 and written == plain.expression)
    return _same_angle(one, other) or _same_angle(other, one)


def _same_angle(one: Value, other: Value) -> bool:
    return (
        one.unit == "degree"
        and not other.unit
        and other.expression.has(sympy.pi)
        and same_expression(one.expression * sympy.pi / 180, other.expression)
    )


def _same_words(one: Words, other: Words) -> bool:
    if one.text == other.text and not (one.spelled and other.spelled):
        return True
    if one.product is None or other.product is None:
        return False
    return (one.spelled or other.spelled) and one.product == other.product


def _same_ratio(one: Ratio, other: Ratio) -> bool:
    if one.is_clock or other.is_clock or len(one.terms) != len(other.terms):
        return one.text == other.text
    if any(term.expression.is_zero for term in (*one.terms, *other.terms)):
        return one.text == other.text
    first, second = one.terms[0].expression, other.terms[0].expression
    return all(
        same_expression(first * b.expression, second * a.expression)
        for a, b in zip(one.terms, other.terms, strict=True)
    )


def _quotient(ratio: Ratio) -> Expr | None:
    numerator, denominator = (term.expression for term in ratio.terms)
    return None if denominator.is_zero else numerator / denominator


def _same_group(one: Group, other: Group) -> bool:
    if len(one.items) != len(other.items):
        return False
    if "tuple" not in (one.kind, other.kind):
        return _same_collection(one, other)
    if "set" in (one.kind, other.kind):
        return False
    if one.kind == other.kind and one.brackets != other.brackets:
        return _in_order(one.items, other.items) and _is_no_interval(one)
    return _in_order(_by_name(one.items), _by_name(other.items))


def _is_no_interval(group: Group) -> bool:
    return len(group.items) != 2


def _by_name(items: Sequence[Answer]) -> Sequence[Answer]:
    """Values of differently named assignments in the order of their names."""
    names = [item.name for item in items if isinstance(item, Assignment)]
    if len(names) == len(items) == len(set(names)):
        return sorted(items, key=lambda item: item.name if isinstance(item, Assignment) else "")
    return items


def _same_collection(one: Group, other: Group) -> bool:
    ones, others = one.items, other.items
    if _are_named(ones) != _are_named(others):  # x=1, y=2 against 1, 2: in the order of names
        return _in_order(_by_name(ones), _by_name(others))
    return _matched(ones, others)


def _are_named(items: Sequence[Answer]) -> bool:
    names = {item.name for item in items if isinstance(item, Assignment)}
    return len(names) == len(items) > 1


def _in_order(ones: Sequence[Answer], others: Sequence[Answer]) -> bool:
    return len(ones) == len(others) and all(map(same_answer, ones, others))


def _matched(ones: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """Whether the items are the same in some order, each as often."""
    remaining = list(others)
    for item in ones:
        match = next(
            (i for i, candidate in enumerate(remaining) if same_answer(item, candidate)), None
        )
        if match is None:
            return False
        del remaining[match]
    return not remaining


def _same_matrix(one: Matrix, other: Matrix) -> bool:
    return len(one.rows) == len(other.rows) and all(map(_in_order, one.rows, other.rows))


def _vector(matrix: Matrix) -> Sequence[Answer] | None:
    if len(matrix.rows) == 1:
        return matrix.rows[0]
    if all(len(row) == 1 for row in matrix.rows):
        return [row[0] for row in matrix.rows]
    return None


def _same_real_set(one: RealSet, other: RealSet) -> bool:
    if one.variable and other.variable and one.variable != other.variable:
        return False
    remaining = list(other.parts)
    for part in one.parts:
        match = next(
            (i for i, candidate in enumerate(remaining) if _same_interval(part, candidate)), None
        )
        if match is None:
            return False
        del remaining[match]
    return not remaining


def _same_interval(one: Interval, other: Interval) -> bool:
    return (
        (one.low_open or one.low == -sympy.oo) == (other.low_open or other.low == -sympy.oo)
        and (one.high_open or one.high == sympy.oo) == (other.high_open or other.high == sympy.oo)
        and same_expression(one.low, other.low)
        and same_expression(one.high, other.high)
    )


def _same_relation(one: Relation, other: Relation) -> bool:
    """Equal up to a factor: any but 0 of an equation, a positive one of an inequality."""
    if one.operator != other.operator:
        return False
    ratio = constant_ratio(one.difference, other.difference)
    return ratio is not None and (one.operator in ("=", "!=") or bool(ratio > 0))


def _same_as_assigned(assigned: Assignment, other: Answer) -> bool:
    if isinstance(other, Relation):
        curve = _curve(assigned)
        return curve is not None and _same_relation(curve, other)
    if isinstance(other, Group) and len(other.items) == 1 and other.kind == "set":
        return same_answer(assigned.value, other.items[0])
    return same_answer(assigned.value, other)


def _same_curve(one: Assignment, other: Assignment) -> bool:
    first, second = _curve(one), _curve(other)
    return first is not None and second is not None and _same_relation(first, second)


def _curve(assigned: Assignment) -> Relation | None:
    """`y = x^2` as an equation of two variables."""
    value = assigned.value
    if not isinstance(value, Value) or value.unit or value.modulus is not None:
        return None
    return Relation(operator="=", difference=sympy.Symbol(assigned.name) - value.expression)
