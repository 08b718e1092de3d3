"""Pairs, tuples, sets, intervals and matrices: what stands in brackets as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from compass.gym.mathematics.answer import (
    Answer,
    Assignment,
    Group,
    Interval,
    Matrix,
    RealSet,
    Relation,
    UnreadableError,
    Value,
)
from compass.gym.mathematics.tokens import Token
from compass.gym.mathematics.words import listed

Read = Callable[[Sequence[Token]], Answer]

_OPENING = {"(": 1, "[": 1, "\\{": 1, "{": 1}
_CLOSING = {")": 1, "]": 1, "\\}": 1, "}": 1}
_CHEVRONS = {"langle": "(", "rangle": ")"}


REAL_LINE = Interval(low=-sympy.oo, high=sympy.oo, low_open=True, high_open=True)


def split_at(
    tokens: Sequence[Token], is_joint: Callable[[Token], bool]
) -> tuple[list[Sequence[Token]], list[str]]:
    """Parts between joints outside all brackets, and the joints in lower case.

    Errors: `UnreadableError` when brackets do not close.
    """
    parts: list[Sequence[Token]] = []
    joints: list[str] = []
    depth = start = 0
    environments = 0
    for position, token in enumerate(tokens):
        depth += _step(token)
        environments += token.text == "begin" and token.kind == "command"
        environments -= token.text == "end" and token.kind == "command"
        if depth < 0:
            raise UnreadableError(f"{token.text} closes nothing")
        if depth == 0 and environments == 0 and is_joint(token):
            parts.append(tokens[start:position])
            joints.append(token.text.lower())
            start = position + 1
    if depth:
        raise UnreadableError("a bracket is not closed")
    return [*parts, tokens[start:]], joints


def _step(token: Token) -> int:
    if token.kind == "command":
        return (token.text == "langle") - (token.text == "rangle")
    if token.kind != "sign":
        return 0
    return _OPENING.get(token.text, 0) - _CLOSING.get(token.text, 0)


def read_structure(tokens: Sequence[Token], read: Read) -> Answer | None:
    """What the tokens are when brackets hold all of them; None when they do not."""
    parts, _ = split_at(tokens, lambda token: token.kind == "command" and token.text == "cup")
    if len(parts) > 1:
        return _union([read(part) for part in parts])
    if not tokens:
        raise UnreadableError("there is nothing")
    if tokens[0].text == "emptyset" and len(tokens) == 1:
        return Group(kind="set", items=())
    if [token.text for token in tokens] in (["mathbb", "{", "R", "}"], ["mathbb", "R"]):
        return RealSet(parts=(REAL_LINE,))
    if tokens[0].text == "begin" and tokens[0].kind == "command":
        return _matrix(tokens, read)
    if not _holds_all(tokens):
        return None
    opening = _CHEVRONS.get(tokens[0].text, tokens[0].text)
    closing = _CHEVRONS.get(tokens[-1].text, tokens[-1].text)
    inner = tokens[1:-1]
    if opening == "{" and len(_comma_parts(inner)) == 1:
        return read(inner)
    if opening in ("{", "\\{"):  # plain braces with commas in them are meant as a set
        return _set(inner, read)
    return _tuple(opening, closing, inner, read)


def _holds_all(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket is closed by the last token."""
    depth = 0
    for position, token in enumerate(tokens):
        depth += _step(token)
        if depth == 0:
            return position == len(tokens) - 1 and position > 0
    return False


def _comma_parts(inner: Sequence[Token]) -> list[Sequence[Token]]:
    parts, _ = split_at(inner, lambda token: token.kind == "sign" and token.text in (",", ";"))
    return parts


def _set(inner: Sequence[Token], read: Read) -> Answer:
    if not inner:
        return Group(kind="set", items=())
    builder, _ = split_at(inner, lambda token: token.text in (":", "|", "mid"))
    if len(builder) == 2:
        members = read(builder[1])
        if isinstance(members, RealSet):
            return members
        raise UnreadableError("a set of what is not an interval")
    items = [read(part) for part in _comma_parts(inner)]
    values = [item.value if isinstance(item, Assignment) else item for item in items]
    return Group(kind="set", items=tuple(values))


def _tuple(opening: str, closing: str, inner: Sequence[Token], read: Read) -> Answer | None:
    parts = _comma_parts(inner)
    if len(parts) == 1:
        return read(inner) if opening + closing in ("()", "[]") and _is_plain(inner) else None
    if (opening, closing) not in (("(", ")"), ("[", "]"), ("[", ")"), ("(", "]"), ("]", "[")):
        raise UnreadableError("brackets do not match")
    items = tuple(read(part) for part in parts)
    brackets = opening + closing
    if brackets in ("()", "[]"):
        return Group(kind="tuple", items=items, brackets=brackets)
    interval = interval_of(items, brackets)
    if interval is None:
        raise UnreadableError("an interval has two ends")
    return RealSet(parts=(interval,))


def _is_plain(inner: Sequence[Token]) -> bool:
    return bool(inner)


def interval_of(items: Sequence[Answer], brackets: str) -> Interval | None:
    """The interval from the first to the second item; None when they are no two values."""
    if len(items) != 2:
        return None
    low, high = items
    if not isinstance(low, Value) or not isinstance(high, Value):
        return None
    return Interval(
        low=low.expression,
        high=high.expression,
        low_open=brackets[0] == "(",
        high_open=brackets[1] == ")",
    )


def as_real_set(answer: Answer) -> RealSet | None:
    """The part of the real line that an answer is or may be; None when it cannot be one."""
    if isinstance(answer, RealSet):
        return answer
    if isinstance(answer, Group):
        if answer.kind == "tuple":
            interval = interval_of(answer.items, answer.brackets)
            return None if interval is None else RealSet(parts=(interval,))
        if answer.kind == "set" and all(isinstance(item, Value) for item in answer.items):
            return RealSet(parts=tuple(_point(item) for item in answer.items))
    return None


def _point(item: Answer) -> Interval:
    assert isinstance(item, Value), "checked by the caller"
    return Interval(low=item.expression, high=item.expression, low_open=False, high_open=False)


def _union(answers: list[Answer]) -> Answer:
    parts: list[Interval] = []
    for answer in answers:
        member = as_real_set(answer)
        if member is None:
            raise UnreadableError("a union of what are not intervals")
        parts.extend(member.parts)
    return RealSet(parts=tuple(parts))


_ENVIRONMENTS = listed("matrix pmatrix bmatrix vmatrix Vmatrix Bmatrix smallmatrix array")


def _matrix(tokens: Sequence[Token], read: Read) -> Answer:
    name = tokens[2].text if len(tokens) > 6 else ""
    ending = [token.text for token in tokens[-4:]]
    if ending != ["end", "{", name, "}"] or tokens[1].text != "{" or tokens[3].text != "}":
        raise UnreadableError("an environment is not closed, or does not hold the whole answer")
    inner = tokens[4:-4]
    if name == "array" and inner and inner[0].text == "{":
        inner = inner[[token.text for token in inner].index("}") + 1 :]
    rows, _ = split_at(inner, lambda token: token.text == "\\\\")
    rows = [row for row in rows if row]
    if name in ("cases", "aligned", "align"):
        return _system(rows, read)
    if name not in _ENVIRONMENTS or not rows:
        raise UnreadableError(f"environment {name} is not known here")
    read_rows = tuple(
        tuple(read(entry) for entry in split_at(row, lambda token: token.text == "&")[0])
        for row in rows
    )
    if len({len(row) for row in read_rows}) != 1:
        raise UnreadableError("rows of a matrix differ in length")
    if name in ("vmatrix", "Vmatrix"):
        raise UnreadableError("a determinant that is not worked out")
    return Matrix(rows=read_rows)


def _system(rows: list[Sequence[Token]], read: Read) -> Answer:
    if len(rows) == 1:
        return read([token for token in rows[0] if token.text != "&"])
    equations = [read([t for t in row if t.text not in ("&", ",")]) for row in rows]
    if not all(isinstance(equation, Assignment | Relation) for equation in equations):
        raise UnreadableError("cases that are not equations")
    return Group(kind="list", items=tuple(equations))
