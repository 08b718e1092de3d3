"""Rows of the Berkeley function-calling leaderboard as rows of a prompt file.

BFCL keeps questions and possible answers in two files of the same ids; its irrelevance questions
have no answers, for no call is right. Its types are not JSON schema's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compass.errors import UserError

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def bfcl_row(question: Mapping[str, Any], possible: Mapping[str, Any] | None) -> dict[str, Any]:
    """One question of a single turn, with its possible answer.

    Errors: `UserError` for a question of several turns, which takes an environment.
    """
    turns = question.get("question")
    functions = question.get("function")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(functions, list):
        raise UserError(
            f"question {question.get('id')!r} is not of one turn with its own `function` list; "
            "give a file of BFCL's simple, multiple, parallel or irrelevance questions"
        )
    return {
        "id": question["id"],
        "messages": turns[0],
        "domain": "tools",
        "tools": [{"type": "function", "function": json_schema(one)} for one in functions],
        "ground_truth": [] if possible is None else possible["ground_truth"],
    }


def json_schema(value: Any) -> Any:
    """BFCL's schema with JSON schema's types: any type is left out."""
    if isinstance(value, list):
        return [json_schema(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _JSON_TYPES.get(item, item) if _is_type(name, item) else json_schema(item)
        for name, item in value.items()
        if not (_is_type(name, item) and item == "any")
    }


def _is_type(name: str, value: object) -> bool:
    return name == "type" and isinstance(value, str)
