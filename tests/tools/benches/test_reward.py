"""tools/bench.py reward: the ideal it measures itself against, and its three times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from benches.reward import Round


def test_the_ideal_is_the_longer_of_the_two_alone() -> None:
    perfect = Round(generate=3.0, score=2.0, overlapped=3.0, reward_wait=0.0)
    serial = Round(generate=3.0, score=2.0, overlapped=5.0, reward_wait=2.0)
    assert perfect.share_of_ideal == 1.0
    assert serial.share_of_ideal == pytest.approx(1 / ((3 + 2) / 3))


def test_overlapping_hides_time_that_verifiers_sleep(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    words = "--spec debug --num-prompts 6 --group-size 4 --max-num-seqs 4 --num-stop-tokens 40"
    figures = figures_of(f"reward {words} --max-completion-tokens 24 --num-workers 2 --repeats 1")
    [seconds] = figures["wall_seconds"]
    # Two workers share 8 * (20 + 60 + 150) ms: never less, however fast the machine.
    assert seconds["score"] >= 0.92
    assert seconds["overlapped"] >= 0.92
    assert seconds["reward_wait"] < seconds["overlapped"]
    longer = max(seconds["generate"], seconds["score"])
    assert figures["ratio"] == pytest.approx(longer / seconds["overlapped"])
    serial = seconds["generate"] + seconds["score"]
    assert figures["ratio_serial"] == pytest.approx(serial / seconds["overlapped"])
    assert figures["num_workers"] == 2
    assert 24 <= figures["completion_tokens"] <= 24 * 24
