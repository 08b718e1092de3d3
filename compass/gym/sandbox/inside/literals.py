"""Values as text: exact built-in types and nothing else.

What is decoded is built anew from text, so an object with an `__eq__` of its own cannot come out,
whoever wrote the text. JSON's own types stand for themselves; the others are an object with one
name, their type's.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN = (type(None), bool, int, float, str)
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset}
_NAMES: dict[type, str] = {kind: name for name, kind in _SEQUENCES.items()}


class ForeignError(TypeError):
    """A value that is not of an exact built-in type."""


def encode(value: object) -> bytes:
    """The value as text. Errors: `ForeignError` naming the type that cannot cross; `ValueError` for
    an integer of too many digits; `RecursionError` for what is too deep or holds itself."""
    return json.dumps(_marked(value)).encode()


def decode(text: bytes) -> Any:
    """The value that `encode` was given. Errors: `ValueError` for text of another kind;
    `RecursionError`; `TypeError` for a set of what cannot be in one."""
    return json.loads(text, object_hook=_unmarked)


def _marked(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_marked(item) for item in value]
    if kind in _NAMES:
        return {_NAMES[kind]: [_marked(item) for item in value]}
    if kind is dict:
        return {"dict": [[_marked(key), _marked(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    raise ForeignError(kind.__name__)


def _unmarked(marked: dict[str, Any]) -> Any:
    ((name, content),) = marked.items()
    if name in _SEQUENCES:
        return _SEQUENCES[name](content)
    if name == "dict":
        return {key: item for key, item in content}
    if name == "complex":
        return complex(*content)
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "bytearray":
        return bytearray.fromhex(content)
    raise ValueError(f"no type {name!r}")
