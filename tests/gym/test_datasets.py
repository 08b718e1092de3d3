"""Prompt files: every accepted form, and one line that names the place for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts, save_prompts
from compass.types import Prompt


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("field", ["prompt", "problem", "question"])
def test_text_becomes_one_user_message(tmp_path: Path, field: str) -> None:
    [prompt] = load_prompts(write(tmp_path / "p.jsonl", {"id": "a", field: "1+1?"}))
    assert prompt == Prompt(id="a", messages=({"role": "user", "content": "1+1?"},))


def test_every_field_is_read_and_the_rest_is_kept(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    row = {
        "id": 7,
        "messages": messages,
        "answer": 0.5,
        "domain": "reasoning_gym",
        "difficulty": 3,
        "lang": "th",
        "task": "leg_counting",
        "entry": {"nested": [1, None]},
    }
    [prompt] = load_prompts(write(tmp_path / "p.jsonl", row))
    assert prompt == Prompt(
        id="7",
        messages=tuple(messages),
        answer="0.5",
        domain="reasoning_gym",
        difficulty=3.0,
        lang="th",
        extra={"task": "leg_counting", "entry": {"nested": [1, None]}, "answer": 0.5},
    )


def test_a_row_of_ifeval_is_read_as_it_is(tmp_path: Path) -> None:
    row = {"key": 1000, "prompt": "Why?", "instruction_id_list": ["punctuation:no_comma"]}
    [prompt] = load_prompts(write(tmp_path / "p.jsonl", row | {"kwargs": [{}]}))
    assert (prompt.id, prompt.domain) == ("1000", "instructions")
    save_prompts(tmp_path / "again.jsonl", [prompt])
    assert load_prompts(tmp_path / "again.jsonl") == [prompt]


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_have_the_form_that_chat_templates_know(tmp_path: Path, as_text: bool) -> None:
    tools: Any = [{"name": "f"}, {"type": "function", "function": {"name": "g"}}]
    row = {"id": "a", "problem": "x", "tools": json.dumps(tools) if as_text else tools}
    [prompt] = load_prompts(write(tmp_path / "p.jsonl", row))
    assert prompt.tools == [{"type": "function", "function": {"name": name}} for name in "fg"]
    [bare] = load_prompts(write(tmp_path / "p.jsonl", row | {"tools": []}))
    assert bare.tools is None
    with pytest.raises(UserError, match=r"p\.jsonl:1: `tools` is '\[1\]'; it must be a list of"):
        load_prompts(write(tmp_path / "p.jsonl", row | {"tools": [1]}))


@pytest.mark.parametrize(
    ("answer", "text"),
    [(72, "72"), ("1,000", "1,000"), (None, None), (10**400, "1" + "0" * 400)],
)
def test_answers_become_text(tmp_path: Path, answer: object, text: str | None) -> None:
    row = {"id": "a", "problem": "x", "answer": answer}
    assert load_prompts(write(tmp_path / "p.jsonl", row))[0].answer == text


def test_order_is_kept_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = [{"id": str(n), "problem": "x\u2028y"} for n in (3, 1, 2)]
    path = write(tmp_path / "p.jsonl", rows[0], "", rows[1], "   ", rows[2])
    assert [prompt.id for prompt in load_prompts(path)] == ["3", "1", "2"]


def test_raw_prompts_are_marked_and_need_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a", "prompt": "Once"})
    assert load_prompts(path, raw=True)[0].raw
    assert not load_prompts(path)[0].raw
    path = write(tmp_path / "m.jsonl", {"id": "a", "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(UserError, match=r"m\.jsonl:1: raw prompts need text"):
        load_prompts(path, raw=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "problem": ', "not JSON"),
        ('["b"]', "a JSON list, not an object"),
        ('{"id": "", "problem": "x"}', "`id` is ''"),
        ('{"id": 1.5, "problem": "x"}', "`id` is 1.5"),
        ('{"id": true, "problem": "x"}', "`id` is True"),
        ('{"id": "a", "problem": "x"}', "id 'a' was used at"),
        ('{"id": "b"}', "has no prompt; give exactly one of messages, prompt, problem"),
        ('{"id": "b", "problem": "x", "prompt": "y"}', "has prompt and problem"),
        ('{"id": "b", "problem": ""}', "`problem` is empty"),
        ('{"id": "b", "problem": ["x"]}', r"`problem` is \['x'\]; it must be a string"),
        ('{"id": "b", "messages": []}', "`messages` must be a non-empty list"),
        ('{"id": "b", "messages": [{"role": "user"}]}', "is malformed"),
        ('{"id": "b", "messages": ["x"]}', "message 'x' is malformed"),
        ('{"id": "b", "problem": "x", "answer": true}', "`answer` is True"),
        ('{"id": "b", "problem": "x", "answer": ["1"]}', "`answer` is"),
        ('{"id": "b", "problem": "x", "difficulty": "hard"}', "`difficulty` is 'hard'"),
        ('{"id": "b", "problem": "x", "lang": 3}', "`lang` is 3"),
        ('{"id": "b", "problem": "x", "domain": "mth"}', "'mth'; choose one of chain, "),
        ('{"id": "b", "problem": "x", "difficulty": NaN}', "`difficulty` is nan; it must be"),
        ('{"id": "b", "problem": "x", "difficulty": 1e999}', "`difficulty` is inf; it must be"),
        (f'{{"id": "b", "problem": "x", "difficulty": 1{"0" * 400}}}', "`difficulty` is 1000"),
        ('{"id": "b", "problem": "x", "answer": NaN}', "`answer` is nan; it must be"),
        ('{"id": "b", "problem": "x", "answer": -Infinity}', "`answer` is -inf; it must be"),
        (f'{{"id": "b", "problem": "x", "answer": {"7" * 5000}}}', "more than 4300 digits; write"),
        (f'{{"id": {"7" * 5000}, "problem": "x"}}', "more than 4300 digits; write it as a string"),
        ('{"id": "b", "problem": "\\ud83d end"}', r"'problem' holds \\ud83d, half of a surrogate"),
        ('{"id": "b\\udc00", "problem": "x"}', r"'id' holds \\udc00, half of a surrogate pair"),
        (
            '{"id": "b", "messages": [{"role": "user", "content": "\\ud83d"}]}',
            r"'messages' holds \\ud83d",
        ),
        ('{"id": "b", "problem": "x", "hint": {"\\ud83d": 1}}', r"'hint' holds \\ud83d"),
        (f'{{"id": "b", "problem": {"[" * 100_000}', "more than 100 nested brackets"),
        (f'{{"id": "b", "hint": {"[" * 100}{"]" * 100}}}', "more than 100 nested brackets"),
        (
            '{"id": "b", "messages": [{"role": "user", "content": "2+2?"}, '
            '{"role": "assistant", "content": "It is 4."}]}',
            "would hold its own answer; leave that turn out",
        ),
    ],
)
def test_mistake_is_one_error_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a", "problem": "x"}, "", line)
    with pytest.raises(UserError, match=rf"p\.jsonl:3: .*{message}"):
        load_prompts(path)


def test_characters_beyond_the_first_plane_may_be_escaped_in_halves(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"id": "a", "problem": "\\ud83d\\ude00 \\\\ud83d"}')
    assert load_prompts(path)[0].messages[0]["content"] == "😀 \\ud83d"


def test_values_nested_less_deeply_and_many_brackets_are_kept(tmp_path: Path) -> None:
    hint: Any = []
    for _ in range(98):
        hint = [hint]
    row = {"id": "a", "problem": "x", "hint": hint, "flat": [[] for _ in range(1000)]}
    assert load_prompts(write(tmp_path / "p.jsonl", row))[0].extra["hint"] == hint


def test_a_prompt_knows_the_line_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a", "problem": "x"}, "", {"id": 7, "problem": "y"})
    first, second = load_prompts(path)
    assert (first.where, second.where) == (f"{path}:1", f"{path}:3")
    assert second.name == f"{path}:3: prompt '7'"
    assert Prompt(id="a", messages=()).name == "prompt 'a'"


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"id": "a", "problem": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:1: not UTF-8"):
        load_prompts(tmp_path / "p.jsonl")


def test_bytes_that_spell_half_a_surrogate_pair_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"id": "a", "problem": "\xed\xa0\xbd"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:1: not UTF-8"):
        load_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("content", [None, "", "\n  \n"])
def test_missing_and_empty_files_are_user_errors(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"p\.jsonl"):
        load_prompts(tmp_path / "p.jsonl")


def test_saved_prompts_load_as_they_were(tmp_path: Path) -> None:
    conversation = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    prompts = [
        Prompt(id="a", messages=({"role": "user", "content": "ฉ"},), answer="1", domain="chain"),
        Prompt(id="b", messages=conversation, difficulty=2.0, lang="en", extra={"k": [1]}),
    ]
    save_prompts(tmp_path / "p.jsonl", prompts)
    assert load_prompts(tmp_path / "p.jsonl") == prompts


# ---- columns of other frameworks

ASKED = [{"role": "user", "content": "3 + 4?"}]
ROWS = {
    "verl": {
        "data_source": "openai/gsm8k",
        "prompt": ASKED,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"split": "train", "index": 5},
    },
    "SkyRL": {
        "prompt": ASKED,
        "env_class": "gsm8k",
        "reward_spec": {"method": "rule", "ground_truth": 7},
        "extra_info": {"index": 5},
    },
    "TRL, conversational": {"prompt": ASKED, "solution": "7", "index": 5},
    "TRL, plain": {"prompt": "3 + 4?", "answer": "7", "example_id": 5},
    "open-instruct": {"messages": ASKED, "ground_truth": "7", "dataset": "gsm8k", "index": 5},
    "slime": {"prompt": "3 + 4?", "label": "7", "metadata": {"a": 1}, "index": 5},
    "OpenRLHF": {"input": "3 + 4?", "label": "7", "index": 5},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_rows_of_other_frameworks_are_read_as_they_are(tmp_path, row):
    (prompt,) = load_prompts(write(tmp_path / "train.jsonl", row))
    assert (prompt.id, prompt.answer, prompt.domain) == ("train/5", "7", "math")
    assert [dict(message) for message in prompt.messages] == ASKED
    kept = {"messages", "prompt", "answer"}
    assert dict(prompt.extra) == {k: v for k, v in row.items() if k not in kept}


def test_verls_parquet_is_read_as_its_rows(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([ROWS["verl"]]), tmp_path / "train.parquet"
    )
    (prompt,) = load_prompts(tmp_path / "train.parquet")
    assert (prompt.id, prompt.answer) == ("train/5", "7")
    assert prompt.extra["extra_info"] == {"split": "train", "index": 5}
    assert prompt.where == f"{tmp_path}/train.parquet:1"


def test_a_row_without_any_name_is_called_by_its_number(tmp_path):
    rows = [{"problem": "x"}, {"problem": "y"}]
    assert [p.id for p in load_prompts(write(tmp_path / "own.jsonl", *rows))] == ["own/1", "own/2"]


def test_what_is_neither_text_nor_number_stays_in_its_own_field(tmp_path):
    row = {"problem": "x", "ground_truth": {"func_name": "validate"}, "label": 3}
    (prompt,) = load_prompts(write(tmp_path / "own.jsonl", row))
    assert (prompt.answer, prompt.extra["ground_truth"]) == ("3", row["ground_truth"])
