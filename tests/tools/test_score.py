"""tools/score.py, run as a command: its file contract, its exit codes, and no line that stalls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HANGS = r"\boxed{\int_0^{\infty} \frac{\sin(x^2) e^{-x^3}}{1+x^4} dx}"
ROOT = Path(__file__).parents[2]

FIELDS = ["id", "verdict", "reward", "valid", "reason", "breakdown"]


def run(tmp_path: Path, *lines: str, domain: str = "math", flags: tuple[str, ...] = ()) -> Any:
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))
    chosen = ["--domain", domain] if domain else []
    command = [sys.executable, str(ROOT / "tools/score.py"), *chosen]
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    return subprocess.run([*command, *files, *flags], capture_output=True, text=True, timeout=120)


def output(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_scores_come_in_input_order_and_a_hanging_line_stalls_nothing(tmp_path: Path) -> None:
    rows = [
        {"id": "right", "answer": "1/2", "completion": "<think>1</think>\\boxed{0.5}"},
        {"id": "hangs", "answer": "5", "completion": HANGS},
        {"id": "wrong", "answer": 72, "completion": "#### 73"},
        {"id": 4, "answer": "???", "completion": "#### 73"},
        {"id": "right", "answer": "72", "completion": "so it is 72."},
    ]
    done = run(tmp_path, *map(json.dumps, rows), flags=("--pool.timeout_seconds", "2"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "5 scored: 2 right, 2 without a verdict\n"
    scores = output(tmp_path)
    assert all(list(score) == FIELDS for score in scores)
    assert [(s["id"], s["verdict"], s["valid"], s["reason"]) for s in scores] == [
        ("right", 1.0, True, ""),
        ("hangs", 0.0, False, "timeout after 2 s"),
        ("wrong", 0.0, True, ""),
        (
            "4",
            0.0,
            False,
            "no reference answer: needs an `answer` that it can read: '???' cannot be, "
            "it is neither a formula nor words",
        ),
        ("right", 1.0, True, ""),
    ]


def test_a_function_of_lists_sees_all_lines_of_an_id_at_once(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def f(completions, **row):\n    return [len(completions)] * len(completions)\n")
    rows = [{"id": name, "answer": "1", "completion": "1"} for name in ("a", "b", "a")]
    done = run(tmp_path, *map(json.dumps, rows), domain="", flags=("--reward", f"{own}:f"))
    assert (done.returncode, done.stderr) == (0, "")
    assert [(s["id"], s["reward"]) for s in output(tmp_path)] == [("a", 2), ("b", 1), ("a", 2)]


def test_domain_and_further_fields_reach_the_verifier(tmp_path: Path) -> None:
    row = {"id": "a", "answer": "3", "completion": "<think>1+2=3</think>3"}
    done = run(tmp_path, json.dumps(row), json.dumps(row | {"finished": False}), domain="chain")
    assert done.returncode == 0
    assert [score["verdict"] for score in output(tmp_path)] == [1.0, 0.0]
    entry = {"question": "?", "answer": "4", "metadata": {"source_dataset": "leg_counting"}}
    row = {"id": "a", "completion": "4", "task": "leg_counting", "entry": entry}
    assert run(tmp_path, json.dumps(row), domain="reasoning_gym").returncode == 0
    assert output(tmp_path)[0]["breakdown"] == {"raw_score": 1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "answer": "1"}', "in.jsonl:1: `completion` is None"),
        ('{"id": "a", "completion": "1", "answer": []}', "in.jsonl:1: `answer` is []"),
        ('{"id": "a", "completion": "1", "finished": 1}', "in.jsonl:1: `finished` is 1"),
        ('{"completion": "1"}', "in.jsonl:1: no `id`"),
        ("{", "in.jsonl:1: not JSON"),
        ("", "in.jsonl is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, line: str, message: str) -> None:
    done = run(tmp_path, line)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_unknown_domain_and_missing_folder_are_exit_code_2(tmp_path: Path) -> None:
    line = '{"id": "a", "answer": "1", "completion": "1"}'
    assert "unknown domain 'maths'" in run(tmp_path, line, domain="maths").stderr
    done = run(tmp_path, line, flags=("--output", str(tmp_path / "none" / "out.jsonl")))
    assert (done.returncode, "make it first" in done.stderr) == (2, True)


def test_completions_begin_inside_the_thinking_that_their_prompts_opened(tmp_path: Path) -> None:
    row = {"id": "open", "answer": "5", "completion": "Let me see. 2+3 = 5. Wait, maybe"}
    rows = [row, row | {"id": "plain", "thinking_open": False}]
    assert run(tmp_path, *map(json.dumps, rows), flags=("--thinking_open",)).returncode == 0
    assert [(s["verdict"], s["valid"]) for s in output(tmp_path)] == [(0.0, True), (1.0, True)]
    assert "never closed" in output(tmp_path)[0]["reason"]
    assert "never closed" not in output(tmp_path)[1]["reason"]
    row = {"id": "a", "answer": "11", "completion": "4+7=11</think>11"}
    done = run(tmp_path, json.dumps(row), domain="chain", flags=("--thinking_open",))
    assert done.stdout == "1 scored: 1 right, 0 without a verdict\n"
