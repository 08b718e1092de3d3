"""A directory may hold two models: which one is read is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compass.models.hf.files import open_weights, stray_weights

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _write(directory: Path, *names: str) -> None:
    for value, name in enumerate(names):
        save_file({f"tensor{value}": torch.full((2,), float(value))}, directory / name)


def _index(directory: Path, *names: str) -> None:
    index = {"weight_map": {f"tensor{value}": name for value, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_single_file_beside_shards_is_said_and_the_shards_are_read(tmp_path):
    _write(tmp_path, *SHARDS, "model.safetensors")
    _index(tmp_path, *SHARDS)
    said = stray_weights(tmp_path)
    assert said is not None
    assert "the shards are read, but transformers would read the single file" in said
    with open_weights(tmp_path) as files:
        assert {path.name for path in files.handles} == set(SHARDS)


@pytest.mark.parametrize(
    ("files", "indexed"),
    [
        (["model.safetensors"], []),
        (["model.safetensors"], ["model.safetensors"]),
        (SHARDS, SHARDS),
    ],
    ids=["one file", "one file with an index", "shards"],
)
def test_nothing_is_said_of_a_directory_with_one_model(files, indexed, tmp_path):
    _write(tmp_path, *files)
    if indexed:
        _index(tmp_path, *indexed)
    assert stray_weights(tmp_path) is None
