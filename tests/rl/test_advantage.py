"""Advantages against the equations, the rollouts that take no part, and groups that are flat."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.rl.advantage import (
    AdvantageConfig,
    group_advantages,
    normalized_advantages,
    verdict_rewards,
)
from tests.rl.batches import group_of_verdicts

STD, NONE = AdvantageConfig(), AdvantageConfig(normalize="none")
rewards = st.floats(-2, 2, allow_subnormal=False)


@pytest.mark.parametrize("divide", [True, False])
@given(verdicts=st.lists(st.none() | rewards, max_size=9), sigma_min=st.floats(0.01, 1))
def test_advantages_are_those_of_the_equation(divide, verdicts, sigma_min):
    valid = [r for r in verdicts if r is not None]
    expected = []
    for r in verdicts:
        if r is None:
            expected.append(0.0)
            continue
        mean = sum(valid) / len(valid)
        std = math.sqrt(sum((x - mean) ** 2 for x in valid) / len(valid))
        expected.append((r - mean) / (max(std, sigma_min) if divide else 1.0))
    got = normalized_advantages(verdicts, divide_by_std=divide, sigma_min=sigma_min)
    assert got == pytest.approx(expected, abs=1e-9)


def test_a_rollout_without_a_verdict_changes_nothing_for_the_others():
    with_broken, without = (
        group_advantages([verdict_rewards(group_of_verdicts("g", verdicts))], STD)[0]
        for verdicts in ([1.0, None, 0.0, 0.0], [1.0, 0.0, 0.0])
    )
    assert with_broken[1] == 0.0
    assert [with_broken[0], *with_broken[2:]] == without


@pytest.mark.parametrize("cfg", [STD, NONE], ids=["std", "none"])
@pytest.mark.parametrize(
    "verdicts",
    [
        [0.1 + 0.2, 0.3, 0.3],  # equal but for float residue, which a bare std would blow up
        [0.7, 0.7 + 1e-9],
        [1.0, None, 1.0],
        [0.0, None],
        [None, None],
        [1.0],
    ],
)
def test_flat_groups_get_exact_zeros(verdicts, cfg):
    assert group_advantages([verdicts], cfg) == [[0.0] * len(verdicts)]


def test_differences_below_the_floor_of_the_std_stay_small():
    """Rewards 1e-3 apart are not flat; divided by their own std they would count like 0 and 1."""
    (advantages,) = group_advantages([[0.5, 0.501]], STD)
    assert advantages == pytest.approx([-0.005, 0.005])


def test_every_group_has_its_own_mean():
    rewards = [[1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    assert group_advantages(rewards, NONE) == [[0.5, -0.5], [0.25, 0.25, -0.75, 0.25]]
