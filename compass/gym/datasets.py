"""Prompt files: rows with one of `messages`, `prompt`, `problem`, `question`, `input`.

The columns of verl, SkyRL, TRL, open-instruct, slime and OpenRLHF are known: a conversation may
stand in `prompt`, the answer in any of `ANSWER_PLACES`, and a row without `id` is called by its
file and number.

Optional: `answer`, `domain` (default `math`; that of a row with `options` or `instruction_id_list`
is known), `difficulty`, `lang`, `tools`. Every other field is kept in `Prompt.extra` for the
verifier. All mistakes are found here, before any process or device starts.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.gym.choice.options import FIELDS as OPTION_FIELDS
from compass.gym.choice.options import asked_with, read_options
from compass.gym.reward import domain_named
from compass.jsonl import write_jsonl
from compass.rows import read_rows
from compass.types import Message, Prompt

TEXT_FIELDS = ("prompt", "problem", "question")
_DOMAIN_FIELDS = {
    **dict.fromkeys(OPTION_FIELDS, "choice"),
    "instruction_id_list": "instructions",
}
"""Fields that say what a row's domain is where it does not."""
_OWN_FIELDS = frozenset({"id", "messages", *TEXT_FIELDS, "answer", "domain", "difficulty", "lang"})


def load_prompts(
    path: str | Path, *, raw: bool = False, own_domains: Collection[str] = ()
) -> list[Prompt]:
    """Read a prompt file, in file order.

    `raw`: the text is fed to the model as it stands, with no chat template; such a file must give
    text, not a conversation. `own_domains` need no verifier of ours. Errors: `UserError`
    "FILE:LINE: ..." for anything malformed.
    """
    prompts: list[Prompt] = []
    first_seen: dict[str, str] = {}
    for where, row in read_rows(path):
        try:
            prompt = parse_prompt(row, raw=raw, where=where, own_domains=own_domains)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if prompt.id in first_seen:
            raise UserError(
                f"{where}: id {prompt.id!r} was used at {first_seen[prompt.id]}; "
                "give every prompt its own id"
            )
        first_seen[prompt.id] = where
        prompts.append(prompt)
    return prompts


def parse_prompt(
    row: Mapping[str, Any],
    *,
    raw: bool = False,
    where: str = "",
    own_domains: Collection[str] = (),
) -> Prompt:
    """One row of a prompt file, which is at `where`. Errors: `UserError` naming the field and the
    remedy."""
    domain = _domain(row, own_domains)
    messages = _messages(row, raw)
    options = read_options(row) if domain == "choice" else None
    if options is not None and not raw:
        messages = _with_options(messages, options)
    return Prompt(
        id=identifier_of(row, where),
        messages=messages,
        answer=answer_of(row),
        difficulty=_number(row, "difficulty"),
        lang=_text(row, "lang"),
        raw=raw,
        extra=_extra(row),
        where=where,
        **({} if domain is None else {"domain": domain}),
    )


def _domain(row: Mapping[str, Any], own_domains: Collection[str]) -> str | None:
    """The domain that a row names, or that its fields are those of."""
    domain = _text(row, "domain")
    if domain is not None:
        if domain not in own_domains:
            domain_named(domain)
        return domain
    return next((of for name, of in _DOMAIN_FIELDS.items() if row.get(name) is not None), None)


def save_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `load_prompts` gives them back. Errors: `UserError` from writing."""
    write_jsonl(path, map(prompt_row, prompts))


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The JSON object of one prompt; a single user message is written as `problem`."""
    row: dict[str, Any] = {"id": prompt.id}
    if len(prompt.messages) == 1 and set(prompt.messages[0].items()) >= {("role", "user")}:
        row["problem"] = prompt.messages[0]["content"]
    else:
        row["messages"] = [dict(message) for message in prompt.messages]
    optional = {
        "answer": prompt.answer,
        "domain": prompt.domain,
        "difficulty": prompt.difficulty,
        "lang": prompt.lang,
    }
    return row | {k: v for k, v in optional.items() if v is not None} | dict(prompt.extra)


def identifier_of(row: Mapping[str, Any], where: str = "") -> str:
    """The `id` of a row as text, or IFEval's `key`; of a row at `where` that has neither, its
    file's name and `extra_info.index`, `index`, `example_id` or row number.

    Raises:
        UserError: there is none, or it is neither a string nor an integer.
    """
    value = row.get("id", row.get("key"))
    if value is None and where:
        file, _, number = where.rpartition(":")
        places = (_at(row, "extra_info", "index"), row.get("index"), row.get("example_id"))
        index = next((place for place in places if place is not None), number)
        return f"{Path(file).stem}/{index}"
    if value is None:
        raise UserError(f"no `id` among the fields {sorted(row)}; give every prompt a unique id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"`id` is {value!r}; it must be a non-empty string or an integer")
    return str(value)


def _at(row: Mapping[str, Any], *place: str) -> Any:
    """`row[name]`, or `row[table][name]`; None where it is not there."""
    value: Any = row
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _messages(row: Mapping[str, Any], raw: bool) -> tuple[Message, ...]:
    given = [name for name in ("messages", *TEXT_FIELDS) if row.get(name) is not None]
    if not given and isinstance(row.get("input"), str):
        given = ["input"]
    if len(given) != 1:
        raise UserError(
            f"has {' and '.join(given) or 'no prompt'}; give exactly one of messages, "
            f"{', '.join(TEXT_FIELDS)} (rename what else the verifier needs)"
        )
    is_conversation = given == ["messages"] or (
        given == ["prompt"] and isinstance(row["prompt"], list)
    )
    if not is_conversation:
        text = _text(row, given[0])
        if not text:
            raise UserError(f"`{given[0]}` is empty; write the text of the prompt")
        return ({"role": "user", "content": text},)
    if raw:
        raise UserError(f"raw prompts need text in one of {', '.join(TEXT_FIELDS)}, not `messages`")
    conversation = row[given[0]]
    if not isinstance(conversation, list) or not conversation:
        raise UserError(f"`{given[0]}` must be a non-empty list")
    for message in conversation:
        _check_message(message)
    if conversation[-1]["role"] == "assistant":
        raise UserError(
            f"`{given[0]}` end with the assistant's turn, so that the prompt would hold its own "
            "answer; leave that turn out (its result belongs in `answer`)"
        )
    return tuple(conversation)


def _check_message(message: object) -> None:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(name), str) for name in ("role", "content")
    ):
        raise UserError(
            f"message {message!r} is malformed; each needs `role` and `content`, both strings"
        )


ANSWER_PLACES = (
    ("answer",),
    ("reward_model", "ground_truth"),
    ("reward_spec", "ground_truth"),
    ("ground_truth",),
    ("label",),
    ("solution",),
)
"""Where other frameworks keep the reference answer: the first that is there counts."""


def answer_of(row: Mapping[str, Any]) -> str | None:
    """The reference answer as text; JSON numbers are written out. What is neither text nor number,
    as the checks of some verifiers, stays in its own field."""
    for place in ANSWER_PLACES:
        value = _at(row, *place)
        if isinstance(value, str) or _is_number(value):
            return str(value)
        if value is not None and place == ("answer",):
            raise UserError(f"`answer` is {value!r}; it must be a string or a number")
    return None


def given_answer(prompt: Prompt) -> Any:
    """The reference answer as the row has it: a number is one, and what is neither text nor number
    is there too, as the lists of answers that some functions of other frameworks expect."""
    values = [_at(prompt.extra, *place) for place in ANSWER_PLACES]
    if prompt.answer is None:
        return next((value for value in values if value is not None), None)
    numbers = (value for value in values if _is_number(value) and str(value) == prompt.answer)
    return next(numbers, prompt.answer)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _with_options(messages: tuple[Message, ...], options: Sequence[str]) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, {**last, "content": asked_with(last["content"], options)})


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    """Every further field as it is, and an answer that is a number, for functions that reckon with
    it; only `tools` get the one form that chat templates know."""
    extra = {name: value for name, value in row.items() if name not in _OWN_FIELDS}
    if _is_number(row.get("answer")):
        extra["answer"] = row["answer"]
    tools = extra.pop("tools", None)
    return extra if tools in (None, [], "") else extra | {"tools": _tools(tools)}


def _tools(value: object) -> list[dict[str, Any]]:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise UserError(f"`tools` is {str(value)[:100]!r}; it must be a list of functions")
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in value
    ]


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"`{name}` is {value!r}; it must be a string")
    return value


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise UserError(f"`{name}` is {value!r}; it must be a number")
    return float(value)


def _is_finite(value: float) -> bool:
    """Whether a float can hold it: JSON files have NaN, 1e999 and integers of any size."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
