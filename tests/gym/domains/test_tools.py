"""Tool calls are judged by BFCL's rules: types, arguments that may be left out, any order, no more
calls than asked for, none where none is right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compass.gym.domains.tools import check, judge
from compass.types import Prompt

WEATHER = {
    "name": "weather.get",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "limits": {"type": "array", "items": {"type": "number"}},
            "metric": {"type": "boolean"},
            "where": {"type": "object", "properties": {"x": {"type": "number"}}},
            "any": {},
        },
        "required": ["city"],
    },
}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "ping"}}]


def asked(*calls: Any, tools: Any = TOOLS, **row: Any) -> Prompt:
    extra = {"tools": tools, **(row or {"ground_truth": list(calls)})}
    return Prompt(id="p", messages=(), domain="tools", extra=extra)


def verdict(prompt: Prompt, completion: str) -> float:
    judged = judge(prompt, completion, True)
    assert judged.valid, judged.reason
    return judged.verdict


ONE = asked(
    {
        "weather.get": {
            "city": ["New York, NY", "NYC"],
            "days": ["", 3],
            "limits": [[1, 2.5], ""],
            "metric": [True, ""],
            "where": [{"x": [1.0, 2], "y": [""]}, ""],
        }
    }
)


@pytest.mark.parametrize(
    "arguments",
    [
        "city='NYC'",
        "city='new york ny'",
        "city='NYC', days=3, limits=[1, 2.5], metric=True",
        "limits=(1.0, 2.5), city='NYC'",
        "city='NYC', where={'x': 2}",
        "city='NYC', where={'x': 1, 'y': ''}",
    ],
)
def test_a_right_call_scores_1(arguments: str) -> None:
    assert verdict(ONE, f"<think>[weather.get()]</think>[weather.get({arguments})]") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "`city` is missing"),
        ("city='Boston'", "`city` is not what was asked for"),
        ("city=['NYC']", "`city` is of a wrong type"),
        ("city='NYC', days=3.0", "`days` is of a wrong type"),
        ("city='NYC', days=True", "`days` is of a wrong type"),
        ("city='NYC', days=4", "`days` is not what was asked for"),
        ("city='NYC', limits=[1, '2.5']", "`limits` is not what was asked for"),
        ("city='NYC', limits=[2.5, 1]", "`limits` is not what was asked for"),
        ("city='NYC', metric=1", "`metric` is of a wrong type"),
        ("city='NYC', where={'z': 1}", "`where` is not what was asked for"),
        ("city='NYC', where={}", "`where` is not what was asked for"),
        ("city='NYC', any=1", "`any` is not what was asked for"),
        ("city='NYC', wind=1", "there is no `wind`"),
    ],
)
def test_a_wrong_argument_is_0_and_named(arguments: str, reason: str) -> None:
    judged = judge(ONE, f"[weather.get({arguments})]", True)
    assert (judged.verdict, judged.valid) == (0.0, True)
    assert reason in judged.reason


def test_parallel_calls_match_in_any_order_and_number() -> None:
    two = asked({"weather.get": {"city": ["A", "B"]}}, {"weather.get": {"city": ["A"]}})
    assert verdict(two, "[weather.get(city='A'), weather.get(city='B')]") == 1
    assert verdict(two, "[weather.get(city='B'), weather.get(city='A')]") == 1
    assert verdict(two, "[weather.get(city='B'), weather.get(city='B')]") == 0
    one = judge(two, "[weather.get(city='A')]", True)
    assert (one.verdict, one.breakdown, one.reason) == (
        0.0,
        {"calls_matched": 0.5},
        "1 calls, where 2 are right",
    )
    assert verdict(two, "[weather.get(city='A')," * 1 + "weather.get(city='B'), ping()]") == 0
    assert judge(two, "[" + "weather.get(city='A')," * 500 + "]", True).breakdown == {
        "calls_matched": 0.0
    }


def test_no_call_is_right_where_none_helps() -> None:
    none = asked()
    assert verdict(none, "I have no function for that.") == 1
    assert verdict(none, "[ping()]") == 0
    assert verdict(none, "<tool_call>{broken</tool_call>") == 0


def test_broken_json_is_0_with_the_reason() -> None:
    judged = judge(ONE, '<tool_call>{"name": "weather.get", }</tool_call>', True)
    assert (judged.verdict, judged.valid) == (0.0, True)
    assert judged.reason.startswith("tool call 1 is not JSON")


@pytest.mark.parametrize("name", ["calls", "ground_truth", "answers"])
def test_calls_as_other_data_sets_have_them_are_read(name: str) -> None:
    """xLAM: JSON texts, and parameters without a schema around them."""
    tools = json.dumps(
        [{"name": "f", "parameters": {"a": {"type": "int"}, "b": {"type": "str, optional"}}}]
    )
    calls = json.dumps([{"name": "f", "arguments": {"a": 1}}])
    prompt = asked(tools=tools, **{name: calls})
    assert check(prompt) is None
    assert verdict(prompt, "[f(a=1)]") == 1
    assert verdict(prompt, "[f(a=1, b='x')]") == 0
    assert "`a` is missing" in judge(prompt, "[f()]", True).reason
    openai = [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    assert verdict(asked(tools=tools, **{name: openai}), "[f(a=1)]") == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": None}, "needs `tools`"),
        ({"tools": "[{"}, "needs `tools` that is a list, or its JSON"),
        ({"tools": [{"parameters": {}}]}, "`tools[0]` has no `name`"),
        ({"tools": [{"name": "f", "parameters": 3}]}, "`parameters` of `tools[0]` must be an"),
        ({"tools": TOOLS}, "needs `calls`"),
        ({"tools": TOOLS, "calls": [3]}, "`calls[0]` must be an object with `name`"),
        ({"tools": TOOLS, "calls": [{"f": {}}]}, "expects a call of 'f', which is not among"),
    ],
)
def test_a_row_that_cannot_be_judged_says_why(row: dict[str, Any], message: str) -> None:
    prompt = Prompt(id="p", messages=(), domain="tools", extra=row)
    assert message in (check(prompt) or "")
    assert not judge(prompt, "[ping()]", True).valid
