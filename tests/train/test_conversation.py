"""Every form of a row is the conversation that it says, and what is learned of it."""

from __future__ import annotations

import pytest

from compass.errors import UserError
from compass.gym.byte_tokenizer import byte_tokenizer
from compass.text.tokenizer import Tokenizer
from compass.train.conversation import conversation_of

ASKED, SAID = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
PARTS = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED | {"content": PARTS}, SAID | {"weight": 1, "name": None}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [ASKED], "completion": [SAID]},
    ],
)
def test_forms_of_the_same_conversation_are_one(row):
    said = conversation_of(row)
    assert said.messages == (ASKED, SAID)
    assert (said.untrained, said.tools) == (frozenset(), None)


def test_alpacas_input_stands_below_the_instruction_and_nothing_around_them():
    said = conversation_of({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert said.messages[0] == {"role": "user", "content": "Add.\n\n1 2"}


def test_a_call_without_content_reaches_the_template_as_an_object():
    row = {"messages": [ASKED, SAID | {"content": None, "tool_calls": [CALL]}], "tools": "[{}]"}
    said = conversation_of(row)
    (call,) = said.messages[1]["tool_calls"]
    assert said.messages[1]["content"] == ""
    assert call["function"] == {"name": "add", "arguments": {"a": 2}}
    assert said.tools == [{}]
    assert row["messages"][1]["tool_calls"] == [CALL], "the row is as it was"


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = byte_tokenizer()
    return Tokenizer(
        backend,
        special_tokens={"eos_token": "<|im_end|>"},
        stop_token_ids=(backend.token_to_id("<|im_end|>"),),
        chat_template=TEMPLATE,
        files={},
        source="toy",
    )


def learned(tokenizer: Tokenizer, row: dict) -> str:
    said = conversation_of(row)
    ids, mask = tokenizer.encode_chat(said.messages, tools=said.tools, untrained=said.untrained)
    return tokenizer.decode([i for i, is_learned in zip(ids, mask, strict=True) if is_learned])


def test_messages_of_weight_0_are_read_and_not_learned(tokenizer):
    bad = {"role": "assistant", "content": "5", "weight": 0}
    assert learned(tokenizer, {"messages": [ASKED, bad, ASKED, SAID]}) == "4<|im_end|>"
    assert learned(tokenizer, {"messages": [ASKED, SAID, ASKED, bad]}) == "4<|im_end|>"
    with pytest.raises(UserError, match="no assistant message with a weight of 1"):
        learned(tokenizer, {"messages": [ASKED, bad]})


def test_tools_and_calls_are_rendered_as_transformers_would(tokenizer):
    row = {"messages": [ASKED, SAID | {"tool_calls": [CALL]}], "tools": [{"name": "add"}]}
    assert learned(tokenizer, row) == '4{"a": 2}<|im_end|>'
    ids, _ = tokenizer.encode_chat(conversation_of(row).messages, tools=row["tools"])
    assert tokenizer.decode(ids).startswith('[{"name": "add"}]<|im_start|>user:2+2?')


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [ASKED, SAID | {"content": None}]}, r"message 1 \(assistant\) has the cont"),
        ({"messages": [ASKED | {"content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [ASKED, SAID | {"weight": 0.5}]}, r"message 1 has weight=0.5; it must be 0"),
        ({"messages": ["hi"]}, "message 0 is 'hi'; it must be an object with a role"),
        ({"messages": [SAID | {"tool_calls": [{"name": "f"}]}]}, "it needs function.name"),
        (
            {"messages": [SAID | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "arguments is text that is not JSON",
        ),
        ({"prompt": 3, "completion": "4"}, "prompt is 3; it must be text or a list"),
        ({"prompt": "2+2?"}, "a row with prompt: it needs messages"),
    ],
)
def test_a_malformed_row_names_what_and_where(row, complaint):
    with pytest.raises(UserError, match=complaint):
        conversation_of(row)
