"""The demo's files: no leak, the promised order and mixture, the same bytes for a seed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts
from compass.gym.domains.chain import judge
from compass.gym.domains.chain_data import (
    ChainDataConfig,
    eval_prompts,
    rl_prompts,
    sft_rows,
    write_chain_data,
)
from compass.jsonl import read_jsonl
from compass.types import Prompt

SMALL = ChainDataConfig(
    num_sft_problems=200,
    num_sft_steps=30,
    sft_batch_size=10,
    num_worked_only_steps=20,
    num_rl_prompts=100,
    num_eval_prompts=40,
)


def question(prompt: Prompt) -> str:
    return prompt.messages[0]["content"]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_trained_question_is_ever_evaluated_even_across_seeds(seed: int) -> None:
    config = ChainDataConfig()
    trained = {row["messages"][0]["content"] for row in sft_rows(config, seed)}
    trained |= {question(prompt) for prompt in rl_prompts(config, seed)}
    for eval_seed in (seed, seed + 17):
        evaluated = {question(prompt) for prompt in eval_prompts(config, eval_seed)}
        assert len(evaluated) == config.num_eval_prompts
        assert not trained & evaluated


def test_sft_rows_are_worked_first_and_mostly_terse_later() -> None:
    config = ChainDataConfig()
    rows = list(sft_rows(config, 0))
    assert len(rows) == 600 * 40
    assert len({row["id"] for row in rows}) == len(rows)
    terse = ["<think></think>" in row["messages"][1]["content"] for row in rows]
    first_late = config.num_worked_only_steps * config.sft_batch_size
    assert not any(terse[:first_late])
    assert sum(terse[first_late:]) / len(terse[first_late:]) == pytest.approx(0.65, abs=0.02)


def test_every_sft_demonstration_is_right() -> None:
    for row in islice(sft_rows(SMALL, 3), 300):
        user, assistant = row["messages"]
        answer = str(eval(user["content"].rstrip("=")))
        prompt = Prompt(id=row["id"], messages=(user,), answer=answer, domain="chain")
        assert judge(prompt, assistant["content"], True).verdict == 1.0


def test_rl_prompts_follow_the_level_weights() -> None:
    counts = Counter(prompt.difficulty for prompt in rl_prompts(ChainDataConfig(), 0))
    assert sorted(counts) == [2, 4, 5, 6, 7, 8, 10, 12]
    shares = {level: count / 4096 for level, count in counts.items()}
    assert shares[2] == pytest.approx(0.15, abs=0.02)
    assert shares[12] == pytest.approx(0.04, abs=0.015)


def test_written_files_load_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_chain_data(SMALL, tmp_path / folder, seed)
    names = ("sft.jsonl", "rl.jsonl", "eval.jsonl", "tokenizer/tokenizer.json")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/rl.jsonl").read_bytes() != (tmp_path / "c/rl.jsonl").read_bytes()
    assert load_prompts(tmp_path / "a/rl.jsonl") == rl_prompts(SMALL, 5)
    assert load_prompts(tmp_path / "a/eval.jsonl") == eval_prompts(SMALL, 5)
    written = [row for _, row in read_jsonl(tmp_path / "a/sft.jsonl")]
    assert written == json.loads(json.dumps(list(sft_rows(SMALL, 5))))


@pytest.mark.parametrize(
    "changes",
    [
        {"rl_levels": (2, 3)},
        {"rl_levels": (), "rl_level_weights": ()},
        {"sft_levels": (0, 1)},
        {"rl_levels": (2,), "rl_level_weights": (0.0,)},
        {"terse_share": 1.5},
        {"num_sft_problems": 0},
    ],
)
def test_config_refuses_what_cannot_work(changes: dict) -> None:
    with pytest.raises(UserError):
        ChainDataConfig(**changes)


def test_more_held_out_problems_than_exist_is_a_user_error() -> None:
    config = ChainDataConfig(rl_levels=(2,), rl_level_weights=(1.0,))
    with pytest.raises(UserError, match="held-out questions of the 512"):
        eval_prompts(config, 0)
