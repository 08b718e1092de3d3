"""The calls in an answer: JSON in `<tool_call>` (Hermes, Qwen) or a list of Python calls (BFCL).

Python is parsed, never run.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FENCE = re.compile(r"\A```[a-z]*\n|\n?```\Z")
_MAX_PYTHON = 20_000
"""Characters: longer answers are no list of calls."""


class BadCallError(Exception):
    """The answer calls, but not in a form that can be read; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call."""

    name: str
    arguments: Mapping[str, Any]


def read_calls(answer: str) -> tuple[Call, ...]:
    """The calls of an answer, in its order; none where it is prose.

    Errors: `BadCallError` for a `<tool_call>` that cannot be read, or a list of Python calls whose
    arguments are no literals.
    """
    if _OPEN in answer:
        return _tagged(answer)
    return _python(answer)


def _tagged(answer: str) -> tuple[Call, ...]:
    calls = []
    for number, part in enumerate(answer.split(_OPEN)[1:], start=1):
        written, closed, _ = part.partition(_CLOSE)
        if not closed:
            raise BadCallError(f"tool call {number} is never closed")
        calls.append(_from_json(written, f"tool call {number}"))
    return tuple(calls)


def _from_json(written: str, where: str) -> Call:
    value = _json(written, where)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadCallError(f"{where} is no object with a `name`")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, f"`arguments` of {where}")
    if not isinstance(arguments, dict):
        raise BadCallError(f"`arguments` of {where} are no object")
    return Call(name=value["name"], arguments=arguments)


def _json(written: str, where: str) -> Any:
    try:
        return json.loads(written)
    except json.JSONDecodeError as error:
        raise BadCallError(f"{where} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise BadCallError(f"{where} is JSON that Python cannot hold") from None


def _python(answer: str) -> tuple[Call, ...]:
    """`[f(a=1), g.h(b="x")]`, with or without the brackets, as the whole answer."""
    nodes = _call_nodes(_FENCE.sub("", answer.strip()).strip())
    return tuple(_from_node(node, f"call {i}") for i, node in enumerate(nodes, start=1))


def _call_nodes(text: str) -> list[ast.Call]:
    if len(text) > _MAX_PYTHON or not text.rstrip("], \n").endswith(")"):
        return []
    try:
        with warnings.catch_warnings():  # about escapes in strings: on stderr for each completion
            warnings.simplefilter("ignore")
            tree = ast.parse(text if text.startswith("[") else f"[{text}]", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = tree.body.elts if isinstance(tree.body, ast.List) else []
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return calls if len(calls) == len(nodes) else []


def _from_node(node: ast.Call, where: str) -> Call:
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise BadCallError(f"{where} has arguments without a name")
    arguments = {str(keyword.arg): _literal(keyword.value, where) for keyword in node.keywords}
    return Call(name=_dotted(node.func, where), arguments=arguments)


def _dotted(node: ast.expr, where: str) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise BadCallError(f"{where} calls no function by its name")
    return ".".join([node.id, *reversed(names)])


_JSON_WORDS = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr, where: str) -> Any:
    """A literal; a bare name is its own text, as BFCL has it."""
    if isinstance(node, ast.Name):
        return _JSON_WORDS.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise BadCallError(f"{where} has an argument that is no literal") from None
