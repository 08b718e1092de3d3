"""pass@k and majority@k against all subsets, and intervals against simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.rl.evaluation.estimates import (
    majority_at,
    mean_over_prompts,
    pass_at,
    wilson,
)

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


def majority_by_subsets(answers: list[str | None], right: str, k: int) -> float:
    """The definition: every subset of k, every tie."""
    worth = []
    for drawn in combinations(answers, k):
        votes = {a: drawn.count(a) for a in set(drawn) - {None}}
        tied = [a for a, count in votes.items() if count == max(votes.values())]
        worth.append(tied.count(right) / len(tied) if tied else 0.0)
    return sum(worth) / len(worth)


@given(ANSWERS)
@settings(max_examples=150, deadline=None)
def test_the_majority_is_that_of_all_subsets(answers: list[str | None]) -> None:
    verdicts = [float(answer == "1") for answer in answers]
    expected = [majority_by_subsets(answers, "1", k) for k in range(1, len(answers) + 1)]
    assert majority_at(answers, verdicts) == pytest.approx(expected)


def test_an_answer_is_worth_the_mean_verdict_of_those_who_give_it() -> None:
    assert majority_at(["x", "x"], [1.0, 0.0]) == pytest.approx([0.5, 0.5])


def test_the_majority_of_a_thousand_is_finite() -> None:
    answers = [str(i % 3) for i in range(600)] + ["0"] * 400
    values = majority_at(answers, [float(a == "0") for a in answers])
    assert values[0] == pytest.approx(0.6)
    assert values[-1] == pytest.approx(1.0)
    assert np.isfinite(values).all()


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right: list[bool]) -> None:
    for k in range(1, len(right) + 1):
        share = np.mean([any(drawn) for drawn in combinations(right, k)])
        value = pass_at(k, num_samples=len(right), num_right=sum(right))
        assert value == pytest.approx(share)


@pytest.mark.parametrize(("num_right", "num"), [(0, 20), (3, 20), (57, 60), (60, 60)])
def test_one_sample_each_gives_wilsons_interval(num_right: int, num: int) -> None:
    """Which is where the score test at 5 % stops rejecting (its definition)."""
    estimate = mean_over_prompts([1.0] * num_right + [0.0] * (num - num_right), num_samples=num)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx(wilson(num_right / num, num))
    for bound in (estimate.low, estimate.high):
        distance = abs(num_right / num - bound)
        statistic = distance / (bound * (1 - bound) / num) ** 0.5 if 0 < bound < 1 else 0.0
        assert statistic == pytest.approx(1.959964, abs=1e-4) or distance < 1e-9


@pytest.mark.parametrize("num_prompts", [20, 100])
@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1.0), (0.3, 0.3), (8.0, 1.0), (0.2, 3.0)], ids=["any", "u", "easy", "hard"]
)
@pytest.mark.parametrize("k", [1, 4, 8])
def test_intervals_cover_what_they_promise(num_prompts: int, a: float, b: float, k: int) -> None:
    """Prompts of a Beta(a, b) chance each, 8 samples: pass@k's interval has the truth 95 times in
    100; of 600 trials the share has a standard error of 1 %."""
    rng = np.random.default_rng(0)
    truth = 1 - np.prod([(b + i) / (a + b + i) for i in range(k)])
    passed = np.array([pass_at(k, num_samples=8, num_right=c) for c in range(9)])
    covered = 0
    for _ in range(600):
        chance = rng.beta(a, b, num_prompts)
        passes = passed[rng.binomial(8, chance)].tolist()
        estimate = mean_over_prompts(passes, num_samples=8 * num_prompts)
        assert estimate is not None
        covered += estimate.low <= truth <= estimate.high
    assert covered / 600 >= 0.92


def test_of_no_prompt_there_is_no_mean() -> None:
    assert mean_over_prompts([], num_samples=0) is None
