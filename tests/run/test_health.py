"""A run ends with the third step in a row that taught it nothing, and not before."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from compass.run.health import MAX_FRUITLESS_STEPS, RunHealth

NORMS = st.sampled_from([0.5, 0.0, math.nan, math.inf])
STEPS = st.lists(st.tuples(st.lists(NORMS, max_size=3), st.booleans()), max_size=12)
"""The gradient norm of each optimizer step, and whether any verdict was valid."""


def fruitless(steps: list[tuple[list[float], bool]]) -> tuple[int, int]:
    """How many of the last steps had no gradient to learn from (those that tried none left out),
    and no valid verdict."""
    tried = [0.5 in norms for norms, _ in steps if norms]
    judged = [judged for _, judged in steps]
    return tuple([*reversed([True, *kind])].index(True) for kind in (tried, judged))


@given(STEPS)
def test_a_run_ends_with_the_third_fruitless_step_in_a_row(steps):
    health = RunHealth()
    for number, (norms, judged) in enumerate(steps, start=1):
        ailment = health.record(number, gradient_norms=norms, judged=judged)
        without_gradient, without_verdict = fruitless(steps[:number])
        assert (ailment is not None) == (
            max(without_gradient, without_verdict) >= MAX_FRUITLESS_STEPS
        )
        if without_gradient >= MAX_FRUITLESS_STEPS:
            assert ailment.startswith("no finite gradient but zero in ")
        elif ailment is not None:
            assert ailment.startswith("no valid verdict in ")


@given(STEPS)
def test_a_run_shorter_than_that_must_have_had_one_good_step(steps):
    health = RunHealth()
    for number, (norms, judged) in enumerate(steps, start=1):
        health.record(number, gradient_norms=norms, judged=judged)
    without_gradient, without_verdict = fruitless(steps)
    finite = any(math.isfinite(norm) for norms, _ in steps for norm in norms)
    all_bad = max(without_verdict, 0 if finite else without_gradient) >= len(steps) > 0
    assert (health.of_short_run() is not None) == all_bad


def test_the_reason_names_the_steps():
    health = RunHealth()
    for step in (7, 8):
        assert health.record(step, gradient_norms=[math.nan, 0.0], judged=True) is None
    assert health.record(9, gradient_norms=[], judged=True) is None, "a flat batch tried none"
    ailment = health.record(10, gradient_norms=[math.inf], judged=True)
    assert "no finite gradient but zero in 3 steps in a row (7, 8, 10)" in ailment
