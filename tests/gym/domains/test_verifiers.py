"""Tasksets of the verifiers package become prompts, judged by their own rewards in workers.

Where the package is installed these tests use it; elsewhere a double of the API.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.types import Prompt

GYM = Path(__file__).parents[1]
TOOL = GYM.parents[1] / "tools" / "make_verifiers.py"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(GYM / "verifiers_tasksets"))
    if importlib.util.find_spec("verifiers") is None:
        monkeypatch.syspath_prepend(str(GYM / "verifiers_double"))
    yield
    for name in [n for n in sys.modules if n.split(".")[0] in ("verifiers", "doubling_taskset")]:
        del sys.modules[name]
    sys.modules.pop("compass.gym.tasksets", None)


def write(path: Path, size: int, **config: Any) -> list[Prompt]:
    from compass.gym.tasksets import rows

    made = list(rows("doubling-taskset", config, size))
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return load_prompts(path)


def test_tasks_become_prompts_and_their_rewards_judge_in_workers(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", 2, first=3)
    assert [prompt.id for prompt in prompts] == ["doubling-taskset/0", "doubling-taskset/1"]
    assert prompts[0].messages == (
        {"role": "system", "content": "Terse."},
        {"role": "user", "content": "Twice 3?"},
    )
    answers = ["<think>3+3</think>6", "8", "It is 8.", "9", "<think>6", "crash"]
    with VerifierPool(PoolConfig(num_workers=1), domains=["verifiers"]) as pool:
        for number, answer in enumerate(answers):
            pool.submit_text(number, prompts[number > 0], answer, finished=True)
        scores = dict(pool.drain())
    found = [(scores[n].verdict, round(scores[n].reward, 3), scores[n].valid) for n in range(5)]
    assert found == [(1, 1, True), (1, 1, True), (0, 0, True), (0, 0.2, True), (0, 0, True)]
    assert scores[0].breakdown == {"right": 1.0, "terse": 1.0, "thought": 3.0}
    assert scores[1].breakdown["thought"] == 0.0
    assert not scores[5].valid
    assert scores[5].reason.startswith("crash: ")


def test_a_task_that_needs_more_than_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 0 of 'doubling-taskset' needs a container; choose"):
        write(tmp_path / "p.jsonl", 2, needy=True)
    with pytest.raises(UserError, match="taskset 'doubling-taskset' cannot be loaded"):
        write(tmp_path / "p.jsonl", 2, unknown=1)


def test_the_tool_writes_the_file_or_one_line(tmp_path: Path) -> None:
    output = tmp_path / "p.jsonl"
    command = [sys.executable, str(TOOL), "--size", "3", "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    for name, code in (("doubling-taskset", 0), ("no-such-taskset", 2)):
        ended = subprocess.run(
            [*command, "--taskset", name], capture_output=True, text=True, env=environment
        )
        assert ended.returncode == code, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "taskset 'no-such-taskset' cannot be loaded" in ended.stderr
    assert len(load_prompts(output)) == 3
