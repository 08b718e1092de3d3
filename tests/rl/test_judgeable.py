"""Prompt files with prompts that cannot be judged are refused, or go on without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compass.distributed import Topology
from compass.errors import UserError
from compass.gym.pool.pool import PoolConfig
from compass.jsonl import write_jsonl
from compass.rl.judgeable import load_judgeable
from compass.types import Prompt

ROWS = [
    {"id": "a", "problem": "2+2?", "answer": "4"},
    {"id": "b", "problem": "2+3?", "final_answer": "5"},
    {"id": "c", "problem": "2+4?", "answer": None},
]


def load(path: Path, topology: Topology, *, drop: bool) -> list[Prompt]:
    gym = PoolConfig(num_workers=1)
    return load_judgeable(path, raw=False, drop=drop, gym=gym, topology=topology)


def test_the_first_is_named_by_file_and_line_with_the_field_to_rename(
    tmp_path: Path, topology: Topology
) -> None:
    write_jsonl(tmp_path / "p.jsonl", ROWS)
    complaint = (
        r"p.jsonl:2: domain 'math' needs `answer`: has final_answer; rename it to answer "
        r"\(2 of 3 prompts cannot be judged; --drop_unjudgeable drops them\)"
    )
    with pytest.raises(UserError, match=complaint):
        load(tmp_path / "p.jsonl", topology, drop=False)


def test_they_are_counted_and_dropped_when_asked_for(
    tmp_path: Path, topology: Topology, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "p.jsonl", ROWS)
    assert [prompt.id for prompt in load(tmp_path / "p.jsonl", topology, drop=True)] == ["a"]
    assert "dropped 2 of 3 prompts that cannot be judged; the first: " in capsys.readouterr().out


def test_nothing_left_is_refused_even_then(tmp_path: Path, topology: Topology) -> None:
    write_jsonl(tmp_path / "p.jsonl", ROWS[1:])
    with pytest.raises(UserError, match="2 of 2 prompts cannot be judged: nothing is left"):
        load(tmp_path / "p.jsonl", topology, drop=True)
