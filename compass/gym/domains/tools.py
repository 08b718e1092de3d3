"""Domain `tools`: does the completion call the right functions with the right arguments.

Forms of calls are those of `compass.gym.tool_calls.call`, of rows those of
`compass.gym.tool_calls.expected` and `.schema`; the rules are BFCL's (the Berkeley
function-calling leaderboard's).
"""

from __future__ import annotations

from collections.abc import Mapping

from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.gym.tool_calls.call import BadCallError, Call, read_calls
from compass.gym.tool_calls.expected import FORMS, Expected, read_expected
from compass.gym.tool_calls.match import mismatch, num_matched
from compass.gym.tool_calls.schema import BadToolsError, Function, read_tools
from compass.types import Prompt

FIELDS = ("tools", *FORMS)
"""Fields of a row that are read here."""


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the calls are those expected, in any order, and no more; none where none is.

    Breakdown: `calls_matched`, the share of calls expected or made, whichever are more, that match.
    """
    try:
        functions, expected = _task(prompt)
    except BadToolsError as error:
        return no_verdict(f"prompt {prompt.id!r} {error}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    try:
        calls = read_calls(text)
    except BadCallError as error:
        return Judgement(verdict=0.0, reason=str(error), breakdown={"calls_matched": 0.0})
    number = max(len(calls), len(expected))
    matched = num_matched(calls, expected, functions) if len(calls) <= _most(expected) else 0
    right = matched == number
    return Judgement(
        verdict=float(right),
        reason="" if right else _reason(calls, expected, functions),
        breakdown={"calls_matched": matched / number if number else 1.0},
    )


def _most(expected: tuple[Expected, ...]) -> int:
    """Calls that are looked at one by one: an answer of thousands is wrong without that."""
    return 10 * len(expected) + 10


def _reason(
    calls: tuple[Call, ...], expected: tuple[Expected, ...], functions: Mapping[str, Function]
) -> str:
    if len(calls) != len(expected):
        return f"{len(calls)} calls, where {len(expected)} are right"
    if len(calls) == 1:
        return mismatch(calls[0], expected[0], functions) or ""
    return "not the calls that were asked for"


def check(prompt: Prompt) -> str | None:
    """Why no completion can be judged: tools or expected calls are missing or unreadable."""
    try:
        _task(prompt)
    except BadToolsError as error:
        return str(error)
    return None


def _task(prompt: Prompt) -> tuple[Mapping[str, Function], tuple[Expected, ...]]:
    functions = read_tools(prompt.extra.get("tools"))
    expected = read_expected(prompt.extra, prompt.answer)
    for call in expected:
        if call.name not in functions:
            raise BadToolsError(f"expects a call of {call.name!r}, which is not among its `tools`")
    return functions, expected
