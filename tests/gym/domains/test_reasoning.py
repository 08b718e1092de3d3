"""reasoning_gym: right answers are right, near misses are not, faulty tasks are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts, save_prompts
from compass.gym.domains.reasoning import FAULTY_TASKS, judge, make_prompts

TASKS = ["basic_arithmetic", "leg_counting", "chain_sum", "simple_equations", "spell_backward"]


@pytest.mark.parametrize("task", TASKS)
def test_own_answers_are_right_also_after_a_file(tmp_path: Path, task: str) -> None:
    prompts = make_prompts(task, 5, 3)
    save_prompts(tmp_path / "p.jsonl", prompts)
    loaded = load_prompts(tmp_path / "p.jsonl")
    assert loaded == prompts
    for prompt in loaded:
        for template in ("{}", "<think>hm</think>\n{}", "<think></think>so <answer>{}</answer>"):
            judgement = judge(prompt, template.format(prompt.answer), True)
            assert judgement.verdict == judgement.breakdown["raw_score"] == 1.0
        unclosed = judge(prompt, f"<think>{prompt.answer}", True)
        assert (unclosed.verdict, unclosed.valid) == (0.0, True)


def test_partial_credit_is_no_verdict_of_right() -> None:
    [prompt] = make_prompts("basic_arithmetic", 1, 3)
    judgement = judge(prompt, f"I believe that it might be {prompt.answer} or so", True)
    assert 0 < judgement.breakdown["raw_score"] < 1
    assert judgement.verdict == 0.0
    assert judgement.valid


def test_seed_and_config_decide_the_prompts() -> None:
    first, again, other = (make_prompts("chain_sum", 4, seed) for seed in (1, 1, 2))
    assert first == again
    assert [p.messages for p in first] != [p.messages for p in other]
    assert len({prompt.id for prompt in first + other}) == 8
    [long] = make_prompts("chain_sum", 1, 1, min_terms=9, max_terms=9)
    assert long.messages[0]["content"].count("+") + long.messages[0]["content"].count("-") >= 8


@pytest.mark.parametrize("task", sorted(FAULTY_TASKS))
def test_faulty_tasks_are_refused_by_name(task: str) -> None:
    with pytest.raises(UserError, match=task):
        make_prompts(task, 1, 0)
    [sound] = make_prompts("leg_counting", 1, 0)
    faulty = dataclasses.replace(sound, extra={**sound.extra, "task": task})
    judgement = judge(faulty, "4", True)
    assert not judgement.valid
    assert task in judgement.reason


def test_unknown_task_and_bad_config_are_user_errors() -> None:
    with pytest.raises(UserError, match="'leg_count'; did you mean leg_counting"):
        make_prompts("leg_count", 1, 0)
    with pytest.raises(UserError, match="min_term"):
        make_prompts("chain_sum", 1, 0, min_term=3)
    with pytest.raises(UserError, match="chain_sum"):
        make_prompts("chain_sum", 1, 0, min_terms=5, max_terms=2)


def test_prompt_without_its_entry_is_no_verdict() -> None:
    [prompt] = make_prompts("leg_counting", 1, 0)
    judgement = judge(dataclasses.replace(prompt, extra={}), str(prompt.answer), True)
    assert not judgement.valid
    assert "`entry`" in judgement.reason


def test_thinking_that_the_prompt_opened_and_nobody_closed_is_no_answer() -> None:
    prompt = make_prompts("leg_counting", 1, 3)[0]
    for completion, right in ((f"{prompt.answer}", 0.0), (f"hm</think>{prompt.answer}", 1.0)):
        judgement = judge(prompt, completion, True, thinking_open=True)
        assert (judgement.verdict, judgement.valid) == (right, True)


def test_an_answer_that_a_verifier_refuses_is_wrong_and_not_a_crash() -> None:
    [prompt] = make_prompts("prime_factorization", 1, 0)
    judged = judge(prompt, "two times three", True)
    assert (judged.verdict, judged.valid) == (0.0, True)
    assert judged.reason.startswith("no answer found: invalid literal")
