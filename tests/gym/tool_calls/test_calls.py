"""Calls are read in both forms, or refused with a reason; nothing of them is run."""

from __future__ import annotations

import pytest

from compass.gym.tool_calls.call import BadCallError, read_calls


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>\n{"name": "a.f", "arguments": {"x": [1, -2.5], "y": {"z": null}}}\n'
        "</tool_call>",
        'Well:<tool_call>{"name": "a.f", "parameters": "{\\"x\\": [1, -2.5], \\"y\\": {\\"z\\": '
        'null}}"}</tool_call>',
        "[a.f(x=[1, -2.5], y={'z': None})]",
        "a.f(x=[1, -2.5], y={'z': None})",
        "```python\n[a.f(x=[1, -2.5],\n y={'z': None})]\n```",
        "[a.f(x=[1, -2.5], y={'z': None}),]",
    ],
)
def test_a_call_is_read(answer: str) -> None:
    [call] = read_calls(answer)
    assert (call.name, call.arguments) == ("a.f", {"x": [1, -2.5], "y": {"z": None}})


def test_several_calls_keep_their_order_and_names_are_texts() -> None:
    assert [c.name for c in read_calls("[f(), g(a=true, b=red)]")] == ["f", "g"]
    assert read_calls("[f(), g(a=true, b=red)]")[1].arguments == {"a": True, "b": "red"}
    tagged = '<tool_call>{"name": "f"}</tool_call>' * 3
    assert len(read_calls(tagged)) == 3


@pytest.mark.parametrize(
    "answer",
    [
        *("", "I cannot do that (sorry)", "[]", "[1, 2]", "print 3", "f(x) is 3", "[f(a=1), 2]"),
        *(
            "\0f()",
            "[" * 5000 + "f()" + "]" * 5000,
            "-" * 19_000 + "f()",
            "f(a=" + "9" * 9999 + ")",
        ),
        "f(a='" + "x" * 30_000 + "')",
    ],
)
def test_prose_and_what_python_cannot_hold_are_no_calls(answer: str) -> None:
    assert read_calls(answer) == ()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('<tool_call>{"name": "f"', "tool call 1 is never closed"),
        ("<tool_call>{'name': 'f'}</tool_call>", r"tool call 1 is not JSON \(Expecting property"),
        (
            '<tool_call>{"name": "f"}</tool_call><tool_call>[]</tool_call>',
            "tool call 2 is no object",
        ),
        ('<tool_call>{"name": "f", "arguments": 3}</tool_call>', "of tool call 1 are no object"),
        ('<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "of tool call 1 is not JSON"),
        ("<tool_call>" + "[" * 99_999 + "</tool_call>", "JSON that Python cannot hold"),
        ("<tool_call>" + "9" * 9_999 + "</tool_call>", "JSON that Python cannot hold"),
        ("[f(1)]", "call 1 has arguments without a name"),
        ("[f(**{'a': 1})]", "call 1 has arguments without a name"),
        ("[f(), g()(a=1)]", "call 2 calls no function by its name"),
        ("[f(a=__import__('os').system('true'))]", "an argument that is no literal"),
        ("[f(a=9**9**9)]", "an argument that is no literal"),
    ],
)
def test_a_broken_call_says_what_is_wrong(answer: str, reason: str) -> None:
    with pytest.raises(BadCallError, match=reason):
        read_calls(answer)
