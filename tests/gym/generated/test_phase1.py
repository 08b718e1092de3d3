"""The three-domain debug task: no leak, the promised order, answers that their verifiers accept."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts
from compass.gym.generated.phase1 import (
    KINDS,
    Phase1DataConfig,
    prompts,
    sft_rows,
    write_phase1_data,
)
from compass.gym.generated.task import Task, draw_tasks, prompt_of
from compass.gym.pool.pool import PoolConfig, VerifierPool

SMALL = Phase1DataConfig(num_sft_rows=90, num_rl_prompts=20, num_eval_prompts=10)


def question(prompt) -> str:
    return prompt.messages[0]["content"]


@pytest.mark.parametrize("domain", KINDS)
def test_no_trained_question_is_ever_evaluated_even_across_seeds(domain):
    config = Phase1DataConfig(num_sft_rows=3000)
    trained = {row["messages"][0]["content"] for row in sft_rows(config, 0)}
    trained |= {question(p) for p in prompts(config, domain, 0, held_out=False)}
    for seed in (0, 17):
        evaluated = {question(p) for p in prompts(config, domain, seed, held_out=True)}
        assert len(evaluated) == config.num_eval_prompts
        assert not trained & evaluated


def test_demonstrations_are_careful_first_and_mostly_careless_later():
    config = Phase1DataConfig(num_sft_rows=6000)
    rows = list(sft_rows(config, 3))
    programs = [r["messages"][1]["content"] for r in rows[3::4]]
    careless = ["int(input())" not in program for program in programs]
    first_late = int(config.careful_share * len(programs))
    assert not any(careless[:first_late])
    late = careless[first_late:]
    assert sum(late) / len(late) == pytest.approx(config.careless_share, abs=0.06)


def test_the_same_seed_writes_the_same_bytes_and_the_prompts_read_back(tmp_path):
    for folder in ("one", "two"):
        write_phase1_data(SMALL, tmp_path / folder, 5)
    write_phase1_data(SMALL, tmp_path / "other", 6)
    for file in (tmp_path / "one").glob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "other" / file.name).read_bytes()
    for domain in KINDS:
        read = load_prompts(tmp_path / "one" / f"rl_{domain}.jsonl")
        assert read == prompts(SMALL, domain, 5, held_out=False)


def test_a_domain_with_too_few_tasks_says_how_many_it_has():
    config = Phase1DataConfig(num_eval_prompts=100_000)
    with pytest.raises(UserError, match=r"instructions has only \d+ eval prompts of the 100000"):
        prompts(config, "instructions", 0, held_out=True)


@pytest.mark.parametrize("domain", KINDS)
def test_careful_demonstrations_are_right_and_careless_ones_are_short_or_wrong(domain):
    """All but sums are wrong when done carelessly; those are right, and hard to do in the head."""
    prompts_of = [prompt_of(task, task.question) for task in drawn(domain)]
    with VerifierPool(PoolConfig(num_workers=1), domains=[domain]) as pool:
        for task, prompt in zip(drawn(domain), prompts_of, strict=True):
            pool.submit_text((prompt.id, "careful"), prompt, task.careful, finished=True)
            pool.submit_text((prompt.id, "careless"), prompt, task.careless, finished=True)
        scores = dict(pool.drain())
    assert all(score.valid for score in scores.values())
    for kind, expected in (("careful", 1.0), ("careless", 1.0 if domain == "math" else 0.0)):
        assert {s.verdict for (_, k), s in scores.items() if k == kind} == {expected}


def drawn(domain: str) -> list[Task]:
    """Forty tasks, the same at every call."""
    tasks = draw_tasks(KINDS[domain], random.Random(1), held_out=False, distinct=True)
    return list(islice(tasks, 40))
