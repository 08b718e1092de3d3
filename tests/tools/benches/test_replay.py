"""tools/bench.py replay: its estimator, its two generators, and what it prints."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from benches.replay import Paired


def test_paired_differences_find_a_cost_far_below_the_spread_of_the_work() -> None:
    draw, paired = random.Random(0), Paired()
    for _ in range(9):
        for piece in range(200):
            seconds = 1.0 + piece  # pieces differ by 200 times, readings by a percent
            for with_it in (True, False):
                reading = seconds * draw.uniform(0.995, 1.005) * (1.02 if with_it else 1.0)
                paired.add(piece, reading, with_it=with_it)
    total = sum(1.0 + piece for piece in range(200))
    assert paired.cost / total == pytest.approx(0.02, abs=0.001)


def test_an_outlier_costs_nothing() -> None:
    paired = Paired()
    for reading in (1.0, 1.0, 90.0):
        paired.add(0, reading + 0.25, with_it=True)
        paired.add(0, 1.0, with_it=False)
    assert paired.cost == 0.25


def test_shares_are_of_one_step_and_a_choice_takes_one_byte(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    figures = figures_of(
        "replay --spec debug --lengths uniform --num-prompts 2 --group-size 2 --repeats 1"
    )
    assert figures["bytes_per_choice"] == 1.0
    assert figures["ratio"] == pytest.approx(
        1 - figures["recording_share"] - figures["replay_share"]
    )
    assert figures["limit"] == pytest.approx(0.95)
    total = sum(figures["cpu_seconds"].values())
    assert figures["recording_share"] + figures["replay_share"] == pytest.approx(
        total / figures["step_cpu_seconds"]
    )
    assert len(figures["cpu_seconds"]) == 4
