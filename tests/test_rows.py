"""Rows come the same from every format, and what is no such file is one line."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from compass.errors import UserError
from compass.rows import files_of, read_rows

ROWS = [{"a": i, "nested": {"b": [i, i + 1]}} for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    return tmp_path


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_every_format_gives_the_same_rows_with_their_places(folder, ending):
    path = folder / f"x.{ending}"
    assert list(read_rows(path)) == [(f"{path}:{i + 1}", row) for i, row in enumerate(ROWS)]


def test_a_pattern_reads_its_files_in_order(folder):
    (folder / "y.jsonl").write_text('{"a": 9}\n')
    assert files_of(folder / "*.jsonl") == (folder / "x.jsonl", folder / "y.jsonl")
    assert [row["a"] for _, row in read_rows(folder / "*.json*")] == [0, 1, 2, 0, 1, 2, 9]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    (tmp_path / "a[1].jsonl").write_text('{"a": 1}\n')
    assert [row for _, row in read_rows(tmp_path / "a[1].jsonl")] == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.parquet", "PAR1 it is not", "is not a parquet file"),
        ("x.parquet", "", "is not a parquet file"),
        ("x.json", '{"a": 1}', "must be a list of objects"),
        ("x.json", "[]", "must be a list of objects"),
        ("x.json", "[1]", "x.json:1: a JSON int, not an object"),
        ("x.json", '{"a": 1}\n{"a": 2}', "is not JSON .* call it .jsonl"),
        ("x.json", "[" * 100_000, "is not JSON"),
        ("x.jsonl", "", "is empty"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        list(read_rows(tmp_path / name))


def test_what_is_no_file_gets_its_remedy(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name a file in it"):
        files_of(tmp_path)
    with pytest.raises(UserError, match=r"matches no file"):
        files_of(tmp_path / "*.parquet")
    with pytest.raises(UserError, match=r"hf download --repo-type dataset openai/gsm8k"):
        files_of("openai/gsm8k")
    with pytest.raises(UserError, match=r"cannot read .*none.parquet"):
        list(read_rows(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match=r"cannot read .*none.json"):
        list(read_rows(tmp_path / "none.json"))


def test_an_empty_parquet_has_no_row(tmp_path):
    schema = pyarrow.schema([("a", pyarrow.int64())])
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no row"):
        list(read_rows(tmp_path / "x.parquet"))
