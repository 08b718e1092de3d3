"""Flatness is the span of the verdicts, and an outcome cannot contradict them."""

import pytest

from compass.rl.zero_variance.outcome import differ, tie_sign
from tests.rl.zero_variance.groups import MIXED, RIGHT, WRONG, visit


@pytest.mark.parametrize(
    ("verdicts", "sign"),
    [
        (RIGHT, 1),
        (WRONG, -1),
        (MIXED, 0),
        ((0.5, 0.5), 1),
        ((1.0,), 1),
        ((0.0,), -1),
        ((), 0),
        ((1.0, 1.0 + 1e-9), 1),
        ((0.0, 1e-5), 0),
    ],
)
def test_the_sign_of_a_tie(verdicts, sign):
    assert tie_sign(verdicts) == sign
    assert not (sign and differ(verdicts))


@pytest.mark.parametrize(
    ("verdicts", "saved_by"),
    [(MIXED, "residual"), (MIXED, "none"), (RIGHT, "base"), ((), "base"), (MIXED, "expand")],
)
def test_an_outcome_that_its_verdicts_contradict_is_refused(verdicts, saved_by):
    with pytest.raises(ValueError, match="group p"):
        visit("p", verdicts, saved_by=saved_by)
