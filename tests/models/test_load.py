"""What is odd about a model directory is said, once, and nothing is said of an ordinary one."""

import json
import shutil
from dataclasses import replace

import pytest

from compass.distributed import Topology
from compass.errors import UserError
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.models.config import PolicyConfig
from compass.models.hf.save import save_hf
from compass.models.load import open_policy, spec_of
from compass.models.policy import build_model
from compass.text.tokenizer import Tokenizer
from tests.tiny_batch import SPEC


def _directory(tmp_path, vocab_size):
    (tmp_path / "tokenizer").mkdir()
    write_byte_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_dir(tmp_path / "tokenizer")
    policy = build_model(replace(SPEC, vocab_size=vocab_size), "cpu")
    for parameter in policy.parameters():
        parameter.data.fill_(0.1)
    save_hf(policy, tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model", tokenizer


def _open(directory, tokenizer, topology):
    return open_policy(str(directory), tokenizer, topology, PolicyConfig(), seed=0)


def test_nothing_is_said_of_an_ordinary_model(alone: Topology, tmp_path, capsys) -> None:
    directory, tokenizer = _directory(tmp_path, 320)
    _open(directory, tokenizer, alone)
    assert capsys.readouterr() == ("", "")


def test_a_tokenizer_much_smaller_than_the_vocabulary_is_said(
    alone: Topology, tmp_path, capsys
) -> None:
    directory, tokenizer = _directory(tmp_path, 2304 + 260)
    _open(directory, tokenizer, alone)
    said = capsys.readouterr().err
    assert said.startswith("note: the vocabulary of ")
    assert f"has 2564 tokens, {2564 - tokenizer.vocab_size} more than its tokenizer has ids" in said
    assert said.count("\n") == 1


def test_a_single_file_beside_shards_is_said_by_one_rank(alone: Topology, tmp_path, capsys) -> None:
    directory, tokenizer = _directory(tmp_path, 320)
    shutil.copy(directory / "model.safetensors", directory / "shard.safetensors")
    policy = _open(directory, tokenizer, alone)
    names = {"weight_map": dict.fromkeys(policy.state_dict(), "shard.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(names))
    _open(directory, tokenizer, replace(alone, rank=1))
    assert capsys.readouterr().err == ""
    _open(directory, tokenizer, alone)
    assert "model.safetensors beside the shards" in capsys.readouterr().err


@pytest.mark.parametrize("open_it", [Tokenizer.from_dir, spec_of])
def test_a_name_on_a_hub_gets_the_command_that_downloads_it(open_it) -> None:
    with pytest.raises(UserError) as refused:
        open_it("Qwen/Qwen3-30B-A3B")
    assert str(refused.value) == (
        "Qwen/Qwen3-30B-A3B is no folder; if it is a model on the Hugging Face hub, download it "
        "first: hf download Qwen/Qwen3-30B-A3B --local-dir Qwen3-30B-A3B, and give Qwen3-30B-A3B"
    )
