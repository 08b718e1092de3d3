"""The file that `tools/make_reasoning.py` writes is a prompt file whose answers verify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compass.gym.datasets import load_prompts
from compass.gym.reward import score

TOOL = Path(__file__).parent.parent.parent / "tools" / "make_reasoning.py"


def write(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *flags], capture_output=True, text=True)


def test_its_own_answers_are_right_and_the_task_is_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    config = '{"min_terms": 3, "max_terms": 3}'
    ended = write(
        "--task", "chain_sum", "--size", "5", "--output", str(path), "--task_config", config
    )
    assert ended.returncode == 0, ended.stderr
    prompts = load_prompts(path)
    assert len(prompts) == 5
    for prompt in prompts:
        assert sum(prompt.messages[0]["content"].count(sign) for sign in " +") >= 2
        assert score(prompt, f"<think></think>{prompt.answer}", True).verdict == 1
        assert score(prompt, f"<think></think>{prompt.answer}0", True).verdict == 0


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "prompts.jsonl"))
    for flags in (("--task", "no_such"), ("--task", "chain_sum", "--task_config", "[1]")):
        ended = write(*flags, *output)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
