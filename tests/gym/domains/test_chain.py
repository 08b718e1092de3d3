"""The chain task: its problems are right, its verifier strict, and its split leak-free."""

from __future__ import annotations

import random
import re
import zlib
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.gym.domains.chain import (
    ChainProblem,
    draw_from_side,
    draw_problem,
    draw_problems,
    judge,
)
from compass.types import Prompt

PROBLEMS = st.builds(
    lambda seed, level: draw_problem(random.Random(seed), level),
    seed=st.integers(0, 2**32),
    level=st.integers(1, 20),
)


def verdict(problem: ChainProblem, completion: str, *, finished: bool = True) -> float:
    prompt = Prompt(
        id="p",
        messages=({"role": "user", "content": problem.question},),
        answer=str(problem.answer),
        domain="chain",
    )
    return judge(prompt, completion, finished).verdict


@settings(deadline=None)
@given(PROBLEMS)
def test_every_running_total_stays_in_bounds_and_the_answer_is_the_sum(
    problem: ChainProblem,
) -> None:
    assert re.fullmatch(r"[1-9]([+-][1-9])*=", problem.question)
    terms = [int(term) for term in re.findall(r"[+-]?\d", problem.question)]
    totals = [sum(terms[: n + 1]) for n in range(len(terms))]
    assert len(terms) == problem.level
    assert all(0 <= total <= 20 for total in totals)
    assert problem.answer == totals[-1]
    if problem.level > 1:
        assert [eval(step.replace("=", "==")) for step in problem.steps] == [True] * len(terms[1:])
        assert [int(step.split("=")[1]) for step in problem.steps] == totals[1:]


@settings(deadline=None)
@given(PROBLEMS)
def test_demonstrations_verify_as_right_and_only_when_finished(problem: ChainProblem) -> None:
    for demonstration in (problem.worked, problem.terse):
        assert verdict(problem, demonstration) == 1.0
        assert verdict(problem, demonstration, finished=False) == 0.0


@settings(deadline=None)
@given(PROBLEMS, st.integers(0, 20))
def test_only_the_right_number_in_the_right_form_counts(problem: ChainProblem, other: int) -> None:
    right = str(problem.answer)
    assert verdict(problem, f"<think>hm</think>{other}") == float(other == problem.answer)
    for completion in (
        right,
        f"<think>{right}",
        f"so <think></think>{right}",
        f"<think></think></think>{right}",
        f"<think></think>{right}</think>",
        f"<think></think>it is {right}",
        f"<think></think>{right}.",
        f"<think>{right}</think>",
        "",
    ):
        assert verdict(problem, completion) == 0.0


def test_thinking_is_told_apart_from_an_empty_think() -> None:
    prompt = Prompt(id="p", messages=(), answer="3", domain="chain")
    thought = {
        text: judge(prompt, text, True).breakdown["thought"]
        for text in ("<think>1+2=3</think>3", "<think>1+2=4</think>4", "<think></think>3", "3")
    }
    assert list(thought.values()) == [1.0, 1.0, 0.0, 0.0]


def test_question_without_reference_answer_is_no_verdict() -> None:
    assert not judge(Prompt(id="p", messages=(), domain="chain"), "<think></think>3", True).valid


def test_drawn_sides_follow_the_checksum_rule() -> None:
    rng = random.Random(0)
    for held_out in (True, False):
        problems = draw_problems(rng, {2: 1.0, 6: 1.0}, held_out=held_out, distinct=False)
        for problem in islice(problems, 300):
            assert (zlib.crc32(problem.question.encode()) % 8 == 0) == held_out


def test_distinct_problems_run_out_instead_of_repeating() -> None:
    problems = list(draw_problems(random.Random(0), {2: 1.0}, held_out=True, distinct=True))
    questions = [problem.question for problem in problems]
    assert len(questions) == len(set(questions))
    # Independently: all questions of two terms, on the held-out side.
    every = [
        f"{a}{sign}{b}="
        for a in range(1, 10)
        for b in range(1, 10)
        for sign in "+-"
        if 0 <= (a + b if sign == "+" else a - b) <= 20
    ]
    held_out = {question for question in every if zlib.crc32(question.encode()) % 8 == 0}
    assert set(questions) <= held_out
    assert len(questions) >= len(held_out) - 1


def test_repeats_come_only_when_a_level_is_exhausted() -> None:
    draws = draw_problems(random.Random(0), {2: 1.0, 6: 1.0}, held_out=False, distinct=False)
    levels: dict[int, list[str]] = {2: [], 6: []}
    for problem in islice(draws, 600):
        levels[problem.level].append(problem.question)
    assert len(set(levels[6])) == len(levels[6])
    assert len(set(levels[2])) < len(levels[2])
    assert len(set(levels[2][:60])) == 60


def test_even_the_smallest_level_has_questions_on_both_sides() -> None:
    for held_out in (True, False):
        problem = draw_from_side(random.Random(0), 1, held_out=held_out)
        assert problem.held_out == held_out


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("4+7=11</think>11", True),
        ("</think>11", True),
        ("4+7=11</think>12", False),
        ("4+7=11", False),
        ("11", False),
        ("4+7=11</think>11</think>11", False),
    ],
)
def test_thinking_that_the_prompt_opened_goes_on_in_the_completion(
    completion: str, right: bool
) -> None:
    prompt = Prompt(id="p", messages=(), answer="11", domain="chain")
    judgement = judge(prompt, completion, True, thinking_open=True)
    assert judgement.verdict == float(right)
    assert ("never closed" in judgement.reason) == ("</think>" not in completion)
    assert judge(prompt, f"<think>{completion}", True).verdict == float(right)
    assert judge(prompt, completion, True).verdict == 0.0
