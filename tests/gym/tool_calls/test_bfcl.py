"""Rows of the leaderboard become prompts whose tools a template can show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts
from compass.gym.domains.tools import check, judge
from compass.gym.tool_calls.bfcl import bfcl_row
from tests.gym.tool_calls.gold_calls import as_json, as_python, changed, gold

TOOL = Path(__file__).parents[3] / "tools" / "make_bfcl.py"
QUESTION = {
    "id": "parallel_0",
    "question": [[{"role": "user", "content": "Play both."}]],
    "function": [
        {
            "name": "spotify.play",
            "parameters": {
                "type": "dict",
                "properties": {"artist": {"type": "string"}, "level": {"type": "float"}},
                "required": ["artist"],
            },
        }
    ],
}
POSSIBLE = {
    "id": "parallel_0",
    "ground_truth": [
        {"spotify.play": {"artist": ["Taylor Swift"], "level": [2, ""]}},
        {"spotify.play": {"artist": ["Maroon 5", "maroon five"], "level": ["", 2]}},
    ],
}


def test_the_tool_joins_questions_and_answers(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("questions", "answers", "output")}
    paths["questions"].write_text(json.dumps(QUESTION))
    paths["answers"].write_text(json.dumps(POSSIBLE))
    flags = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    subprocess.run([sys.executable, str(TOOL), *flags], check=True, capture_output=True)
    [prompt] = load_prompts(paths["output"])
    assert prompt.tools is not None
    schema = prompt.tools[0]["function"]["parameters"]
    assert schema["type"] == "object"
    assert schema["properties"]["level"]["type"] == "number"
    assert check(prompt) is None
    right = gold(prompt.extra["ground_truth"], prompt.tools)
    for form in (as_json, as_python):
        assert judge(prompt, form(right[::-1]), True).verdict == 1
        for wrong in changed(right, prompt.tools):
            assert judge(prompt, form(wrong), True).verdict == 0


def test_without_answers_no_call_is_right() -> None:
    assert bfcl_row(QUESTION, None)["ground_truth"] == []


def test_a_question_of_several_turns_is_refused() -> None:
    with pytest.raises(UserError, match="question 'm' is not of one turn"):
        bfcl_row({"id": "m", "question": [[], []], "function": []}, None)
