"""Estimates from the judged samples of each prompt: pass@k, majority@k, and their intervals.

Shape legend: D samples drawn of a prompt (0..n), R classes tied for the most votes (0..n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
"""Of every interval."""
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over prompts with its interval. Built by `mean_over_prompts`."""

    mean: float
    low: float
    high: float
    num_prompts: int


def pass_at(k: int, *, num_samples: int, num_right: int) -> float:
    """Chance that k of a prompt's samples, drawn without replacement, hold a right one:
    1 - C(n-c, k) / C(n, k), unbiased for k fresh samples (arXiv 2107.03374, eq. 1)."""
    assert 1 <= k <= num_samples
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_at(answers: Sequence[str | None], verdicts: Sequence[float]) -> list[float]:
    """[n]: for k = 1..n, the expected verdict of the answer that most of k samples of a prompt
    give, over all subsets of k.

    The expectation is exact: every subset counts, none is drawn. Answers that tie share the
    subset equally, as if a fair coin chose. A sample without an answer (None) has no vote, and a
    subset without a vote is wrong. An answer's verdict is the mean over the samples that give it.

    Subsets are counted by generating functions: a class of m votes enters with sum_s C(m, s) x^s.
    Those in which t votes are the most have classes with s < t, and some, which tie, with s = t.
    """
    classes = _classes(answers, verdicts)
    num = len(answers)
    most = max((m for m, _ in classes), default=0)
    right_D = np.zeros(num + 1)
    for votes in range(1, most + 1):
        right_D += _right_subsets(classes, answers.count(None), votes, num)
    return [float(right_D[k] / math.comb(num, k)) for k in range(1, num + 1)]


def _classes(answers: Sequence[str | None], verdicts: Sequence[float]) -> list[tuple[int, float]]:
    """Votes and mean verdict of each answer."""
    by_answer: dict[str, list[float]] = {}
    for answer, verdict in zip(answers, verdicts, strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(verdict)
    return [(len(of_one), math.fsum(of_one) / len(of_one)) for of_one in by_answer.values()]


def _right_subsets(
    classes: Sequence[tuple[int, float]], num_silent: int, votes: int, num: int
) -> np.ndarray:
    """[D]: over subsets in which the most votes for one answer are exactly `votes`, the sum of the
    mean verdict of the answers that have so many."""
    most_tied = sum(m >= votes for m, _ in classes)
    count_DR = np.zeros((num + 1, most_tied + 1))  # subsets
    sum_DR = np.zeros_like(count_DR)  # over them, of the verdicts of the answers that tie
    for d in range(num_silent + 1):
        count_DR[d, 0] = math.comb(num_silent, d)
    for size, verdict in classes:
        count_DR, sum_DR = _with_class(count_DR, sum_DR, size, verdict, votes)
    ties_R = np.arange(1, most_tied + 1)
    return (sum_DR[:, 1:] / ties_R).sum(1)


def _with_class(
    count_DR: np.ndarray, sum_DR: np.ndarray, size: int, verdict: float, votes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with one more class of `size` samples."""
    counts, sums = np.zeros_like(count_DR), np.zeros_like(sum_DR)
    end = len(count_DR)
    for s in range(min(size, votes - 1) + 1):
        counts[s:] += math.comb(size, s) * count_DR[: end - s]
        sums[s:] += math.comb(size, s) * sum_DR[: end - s]
    if size >= votes:
        ways, before = math.comb(size, votes), slice(0, end - votes)
        counts[votes:, 1:] += ways * count_DR[before, :-1]
        sums[votes:, 1:] += ways * (sum_DR[before, :-1] + verdict * count_DR[before, :-1])
    return counts, sums


def mean_over_prompts(values: Sequence[float], *, num_samples: int) -> Estimate | None:
    """Mean of one value in [0, 1] for each prompt, with its interval; None without a prompt.

    Samples of a prompt are alike, so that prompts are what is counted: the variance is that of
    the prompts' values (clustered by prompt). It becomes Wilson's interval for as many independent
    samples as would have that variance, at most `num_samples`, and fewer by what Student's t asks
    for a variance that is itself estimated. It holds its level where the mean is near 0 or 1 too
    (Franco et al. 2019, J. Survey Statistics and Methodology 7(3)). Where all values are 0 or 1,
    as with one sample of each prompt, it is Wilson's own.
    """
    num = len(values)
    if not num:
        return None
    mean = math.fsum(values) / num
    low, high = wilson(mean, _effective_number(values, mean, num_samples))
    return Estimate(mean=mean, low=low, high=high, num_prompts=num)


def _effective_number(values: Sequence[float], mean: float, num_samples: int) -> float:
    """How many independent samples say as much as these prompts."""
    num = len(values)
    squares = math.fsum((v - mean) ** 2 for v in values)
    if num == 1 or squares == 0 or all(v in (0.0, 1.0) for v in values):
        return float(num)
    variance = squares / (num - 1) / num
    alike = min(mean * (1 - mean) / variance, float(max(num, num_samples)))
    return alike * (_Z / _student(num - 1)) ** 2


def _student(freedom: int) -> float:
    """Quantile of Student's t, from the normal one (Abramowitz and Stegun 26.7.5)."""
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def wilson(mean: float, num: float) -> tuple[float, float]:
    """Wilson's interval of a proportion of `num` independent trials, at `CONFIDENCE`."""
    z = _Z
    centre = (mean + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(mean * (1 - mean) / num + z * z / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def as_numbers(name: str, estimate: Estimate | None) -> Mapping[str, float | None]:
    """`name`, `name/low` and `name/high`."""
    if estimate is None:
        return {name: None, f"{name}/low": None, f"{name}/high": None}
    return {name: estimate.mean, f"{name}/low": estimate.low, f"{name}/high": estimate.high}
