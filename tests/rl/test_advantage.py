"""Advantages against the equations, the rollouts that take no part, and groups that are flat."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.rl.advantage import (
    AdvantageConfig,
    group_advantages,
    normalized_advantages,
    shaping_metrics,
    unshaped_rewards,
)
from tests.rl.batches import group_of_verdicts, make_group, make_rollout, make_score

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


def advantages_of(verdicts, cfg=STD, *, rewards=None) -> list[float]:
    """Of one group; its rewards are the verdicts unless given."""
    group = group_of_verdicts("g", verdicts)
    return group_advantages([group], [rewards or unshaped_rewards(group)], cfg)[0]


def test_a_rollout_without_a_verdict_changes_nothing_for_the_others():
    with_broken, without = map(advantages_of, ([1.0, None, 0.0, 0.0], [1.0, 0.0, 0.0]))
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
    assert advantages_of(verdicts, cfg) == [0.0] * len(verdicts)


def test_differences_below_the_floor_of_the_std_stay_small():
    """Rewards 1e-3 apart are not flat; divided by their own std they would count like 0 and 1."""
    assert advantages_of([0.5, 0.501]) == pytest.approx([-0.005, 0.005])


def test_every_group_has_its_own_mean():
    rewards = [[1.0, 0.0], [1.0, 1.0, 0.0, 1.0]]
    groups = [group_of_verdicts("g", verdicts) for verdicts in rewards]
    assert group_advantages(groups, rewards, NONE) == [[0.5, -0.5], [0.25, 0.25, -0.75, 0.25]]


@pytest.mark.parametrize("cfg", [STD, NONE], ids=["std", "none"])
@given(shaping=st.lists(st.floats(-0.4, 0), min_size=2, max_size=8))
def test_among_wrong_answers_none_is_rewarded_for_being_less_bad(cfg, shaping):
    punished = advantages_of([0.0] * len(shaping), cfg, rewards=shaping)
    assert max(punished) <= 0
    centred = normalized_advantages(shaping, divide_by_std=cfg is STD, sigma_min=cfg.sigma_min)
    if max(shaping) - min(shaping) > 1e-6:
        assert punished == [min(a, 0.0) for a in centred]
    lifted = [1 + s for s in shaping]
    rewarded = advantages_of([1.0] * len(shaping), cfg, rewards=lifted)
    assert sum(rewarded) == pytest.approx(0, abs=1e-6), "right answers keep both signs"


def test_giving_up_early_is_not_reinforced_when_the_others_were_cut_off():
    rewards = [-0.2] * 6 + [0.0] * 2
    assert advantages_of([0.0] * 8, rewards=rewards) == pytest.approx([-0.5] * 6 + [0.0] * 2)


def test_a_wrong_answer_with_a_better_reward_is_reinforced_where_rewards_say_so():
    """A tenth for the form: the group is all wrong, but its rewards differ by themselves."""
    rollouts = [
        make_rollout("g0", score=make_score(0.0, reward=0.1)),
        make_rollout("g1", score=make_score(0.0)),
    ]
    group = make_group("g", rollouts)
    assert (group.is_tied, group.is_flat) == (True, False)
    assert group_advantages([group], [unshaped_rewards(group)], NONE) == [[0.05, -0.05]]


def test_metrics_say_what_shaping_decides_by_itself(alone):
    groups = [
        group_of_verdicts("mixed", [1.0, 0.0]),
        group_of_verdicts("right", [1.0, 1.0, None]),
        group_of_verdicts("wrong", [0.0, 0.0]),
    ]
    advantages = [[-1.0, 1.0], [0.5, -0.5, 0.0], [-1.0, 0.0]]
    assert shaping_metrics(groups, advantages, alone) == {
        "zv/shaping_share": 2 / 4,
        "zv/right_punished_frac": 2 / 3,
    }
    nothing = shaping_metrics(groups[2:], [[0.0, 0.0]], alone)
    assert nothing == {}, "no advantage and no right answer: no share of either"
