"""A run ends with the third step in a row that taught it nothing, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compass.run.health import MAX_FRUITLESS_STEPS, RunHealth

STEPS = st.lists(st.tuples(st.lists(st.booleans(), max_size=3), st.booleans()), max_size=12)
"""Whether the gradient of each optimizer step was finite, and whether any verdict was valid."""


def fruitless(steps: list[tuple[list[bool], bool]]) -> tuple[int, int]:
    """How many of the last steps had no finite gradient (those that tried none left out), and no
    valid verdict."""
    tried = [any(gradients) for gradients, _ in steps if gradients]
    judged = [judged for _, judged in steps]
    return tuple([*reversed([True, *kind])].index(True) for kind in (tried, judged))


@given(STEPS)
def test_a_run_ends_with_the_third_fruitless_step_in_a_row(steps):
    health = RunHealth()
    for number, (gradients, judged) in enumerate(steps, start=1):
        ailment = health.record(number, finite_gradients=gradients, judged=judged)
        without_gradient, without_verdict = fruitless(steps[:number])
        assert (ailment is not None) == (
            max(without_gradient, without_verdict) >= MAX_FRUITLESS_STEPS
        )
        if without_gradient >= MAX_FRUITLESS_STEPS:
            assert ailment.startswith("no finite gradient in ")
        elif ailment is not None:
            assert ailment.startswith("no valid verdict in ")


@given(STEPS)
def test_a_run_shorter_than_that_must_have_had_one_good_step(steps):
    health = RunHealth()
    for number, (gradients, judged) in enumerate(steps, start=1):
        health.record(number, finite_gradients=gradients, judged=judged)
    all_bad = bool(steps) and max(fruitless(steps)) >= len(steps)
    assert (health.of_short_run() is not None) == all_bad


def test_the_reason_names_the_steps():
    health = RunHealth()
    for step in (7, 8):
        assert health.record(step, finite_gradients=[False, False], judged=True) is None
    assert health.record(9, finite_gradients=[], judged=True) is None, "a flat batch tried none"
    ailment = health.record(10, finite_gradients=[False], judged=True)
    assert "no finite gradient in 3 steps in a row (7, 8, 10)" in ailment
