"""Rows of supervised data as conversations, whatever form they come in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compass.errors import UserError
from compass.types import Message


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What one row says. Built by `conversation_of`."""

    messages: tuple[Message, ...]
    """`content` is text; `tool_calls` and the like are as chat templates want them."""
    untrained: frozenset[int]
    """Assistant messages that are not to be learned: their `weight` is 0."""
    tools: Sequence[Mapping[str, Any]] | None
    """Functions for the chat template."""


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """Read a row with `messages` (OpenAI), `conversations` (ShareGPT), `instruction` and `output`
    (Alpaca), or `prompt` and `completion` (texts, or lists of messages).

    Raises:
        UserError: none of these, or malformed; naming the message.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
    elif "conversations" in row:
        messages = _from_sharegpt(row["conversations"])
    elif "instruction" in row:
        messages = _from_alpaca(row)
    elif "prompt" in row and "completion" in row:
        messages = _turns(row, "prompt", "user") + _turns(row, "completion", "assistant")
    else:
        raise UserError(
            f"a row with {', '.join(row) or 'no fields'}: it needs messages, conversations "
            "(ShareGPT), instruction and output (Alpaca), or prompt and completion"
        )
    if not isinstance(messages, list):
        raise UserError("messages must be a list of objects with role and content")
    tools = row.get("tools")
    return Conversation(
        messages=tuple(_message(message, place) for place, message in enumerate(messages)),
        untrained=frozenset(i for i, message in enumerate(messages) if not _weight(message, i)),
        tools=_parsed(tools, "tools") or None,
    )


def _message(message: Any, place: int) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"message {place} is {message!r:.80}; it must be an object with a role")
    kept = {k: v for k, v in message.items() if k != "weight" and v is not None}
    calls = kept.get("tool_calls")
    if calls:
        kept["tool_calls"] = [_call(call, place) for call in _parsed(calls, "tool_calls")]
    return kept | {"content": _content(message, place, may_be_empty=bool(calls))}


def _content(message: Mapping[str, Any], place: int, *, may_be_empty: bool) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and may_be_empty:
        return ""
    if isinstance(content, list):
        return "".join(_text(part, place) for part in content)
    raise UserError(
        f"message {place} ({message['role']}) has the content {content!r:.80}; it must be text, "
        "text parts, or null beside tool_calls"
    )


def _text(part: Any, place: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise UserError(f"message {place} has a part of type {kind!r}; models here read text alone")


def _call(call: Any, place: int) -> Any:
    """OpenAI writes the arguments as JSON text; chat templates want the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"message {place} has the tool call {call!r:.80}; it needs function.name")
    arguments = _parsed(function.get("arguments") or {}, "arguments")
    return call | {"function": function | {"arguments": arguments}}


def _parsed(value: Any, name: str) -> Any:
    """The value, or the one whose JSON it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is text that is not JSON ({error})") from None


def _weight(message: Mapping[str, Any], place: int) -> bool:
    weight = message.get("weight")
    if weight is None or weight in (0, 1):
        return weight != 0
    raise UserError(f"message {place} has weight={weight!r}; it must be 0 (not learned) or 1")


def _turns(row: Mapping[str, Any], name: str, role: str) -> list[Any]:
    """A text is one message of that role."""
    value = row[name]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return value
    raise UserError(f"{name} is {value!r:.80}; it must be text or a list of messages")


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    """The instruction, and the input below it, as the user's message, without a prompt of
    Alpaca's own around them."""
    asked = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(text, str) for text in [*asked, row.get("output")]):
        raise UserError("an Alpaca row needs the texts instruction and output")
    return [
        {"role": "user", "content": "\n\n".join(filter(None, asked))},
        {"role": "assistant", "content": row["output"]},
    ]


def _from_sharegpt(turns: Any) -> list[Message]:
    from torchtune.data import ShareGPTToMessages

    try:
        if not all(isinstance(turn["value"], str) for turn in turns):
            raise TypeError("a value is no text")
        converted = ShareGPTToMessages()({"conversations": turns})["messages"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"malformed conversations ({error}): each needs from (system, human or gpt) and value"
        ) from None
    return [{"role": m.role, "content": m.text_content} for m in converted]
