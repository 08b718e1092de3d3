"""JSONL files appear whole or not at all. (Errors of reading: tests/gym/test_datasets.py.)"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.jsonl import read_jsonl, write_jsonl


def test_rows_come_back_with_their_place(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"text": "line\nbreak\u2028ฉ"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    path = tmp_path / "x.jsonl"
    assert list(read_jsonl(path)) == [(f"{path}:1", rows[0]), (f"{path}:2", rows[1])]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", [{"old": True}])

    def failing() -> Iterator[dict[str, int]]:
        yield {"new": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(tmp_path / "x.jsonl", failing())
    assert [row for _, row in read_jsonl(tmp_path / "x.jsonl")] == [{"old": True}]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_half_a_surrogate_pair_does_not_stop_a_file_from_being_written(tmp_path: Path) -> None:
    rows = [{"reason": "crash: '\ud83d'"}, {"reason": ""}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*x\.jsonl"):
        write_jsonl(tmp_path / "none" / "x.jsonl", [])
