"""The ladder doubles flat groups; the gate stops where a fresh prompt promises more; and a step
adds no more than it may. All of it is settled from history, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.zero_variance.expand import (
    ExpandConfig,
    Ladder,
    broken_tie_worth,
    gated_ladder,
    ladder_sizes,
    share_ladders,
)
from compass.rl.zero_variance.history import Prospects
from compass.rl.zero_variance.population import Population
from tests.rl.zero_variance.groups import MIXED, RIGHT, WRONG

TOKENS_PER_ROLLOUT = 100
POPULATION = Population(impossible=0.35, trivial=0.25)


def ladder(
    *,
    evidence=(0.0, 0.0),
    useful_per_group=0.3,
    tokens=TOKENS_PER_ROLLOUT,
    luck=1.0,
    base=8,
    **settings,
) -> Ladder:
    """Where a fresh group of 8 is useful with the given probability."""
    prospects = Prospects(
        population=POPULATION,
        useful_per_token=useful_per_group / (8 * TOKENS_PER_ROLLOUT),
        luck_right=luck,
        luck_wrong=luck,
    )
    return gated_ladder(
        base,
        ExpandConfig(**settings),
        evidence=evidence,
        tokens_per_rollout=tokens,
        prospects=prospects,
    )


@pytest.mark.parametrize("flat", [RIGHT, WRONG, (0.5,) * 8])
def test_the_ladder_doubles_flat_groups_up_to_the_largest(flat):
    whole = ladder(gated=False)
    assert [whole.next_size(flat, current) for current in (8, 16, 32, 40)] == [16, 32, 32, 40]
    assert ladder(gated=False, max_group_size=20).next_size(flat, 16) == 20
    assert ladder(gated=False, enabled=False).next_size(flat, 8) == 8


def test_sizes_double_from_any_base_and_the_last_step_may_be_shorter():
    assert ladder_sizes(8, 32) == [8, 16, 32]
    assert ladder_sizes(3, 20) == [3, 6, 12, 20]
    assert ladder_sizes(40, 32) == [40]


@pytest.mark.parametrize("verdicts", [MIXED, (0.5, 1.0), ()])
def test_a_group_with_a_signal_or_without_a_verdict_stays(verdicts):
    assert ladder(gated=False).next_size(verdicts, 8) == 8


def test_some_invalid_rollouts_do_not_stop_the_ladder():
    assert ladder(gated=False).next_size((1.0,) * 3, 8) == 16


def test_ties_of_each_sign_have_a_ladder_of_their_own():
    both = Ladder(base=8, right=(16,), wrong=(16, 32))
    assert (both.next_size(RIGHT, 16), both.next_size(WRONG, 16)) == (16, 32)
    assert both.largest == 32
    assert both.up_to(16) == Ladder(base=8, right=(16,), wrong=(16,))


@pytest.mark.parametrize(
    ("verdicts", "evidence"), [(RIGHT, (0, 0)), (WRONG, (0, 0)), (RIGHT, (16, 0)), (WRONG, (0, 16))]
)
def test_prompts_that_look_hopeless_give_way_to_fresh_ones(verdicts, evidence):
    assert ladder(evidence=evidence).next_size(verdicts, 8) == 8
    assert ladder(evidence=evidence, gated=False).next_size(verdicts, 8) == 16


@pytest.mark.parametrize(("verdicts", "evidence"), [(RIGHT, (8, 8)), (WRONG, (6, 10))])
def test_bad_luck_on_a_prompt_that_is_known_to_vary_is_tried_again(verdicts, evidence):
    assert ladder(evidence=evidence).next_size(verdicts, 8) == 16


def test_prompts_of_long_answers_are_dearer():
    sizes = [
        ladder(evidence=(6.0, 10.0), tokens=tokens, max_group_size=16).next_size(WRONG, 8)
        for tokens in (50, 100, 200, 400, 800)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (16, 8)


@given(
    evidence=st.tuples(st.floats(0, 20), st.floats(0, 20)),
    verdict=st.sampled_from([0.0, 1.0]),
    luck=st.sampled_from([0.5, 1.0]),
    factor=st.sampled_from([0.99, 1.01]),
)
def test_the_gate_opens_exactly_where_breaking_the_tie_is_the_better_buy(
    evidence, verdict, luck, factor
):
    """The group doubles, so its price per rollout equals a fresh group's."""
    passes, failures = evidence[0] + 8 * verdict, evidence[1] + 8 * (1 - verdict)
    chance = POPULATION.break_probability((passes, failures), right=verdict == 1, num_rollouts=8)
    worth = chance * broken_tie_worth(16, 8)
    opened = ladder(evidence=evidence, useful_per_group=luck * worth * factor, luck=luck)
    assert opened.next_size((verdict,) * 8, 8) == (8 if factor > 1 else 16)


def test_a_broken_tie_is_worth_the_spread_of_its_verdicts():
    """One of 16, beside k of 8 for k from 1 to 7, all alike."""
    usual = [np.std([1.0] * k + [0.0] * (8 - k)) for k in range(1, 8)]
    for size in (16, 32):
        broken = np.std([1.0] + [0.0] * (size - 1))
        assert broken_tie_worth(size, 8) == pytest.approx(broken / np.mean(usual))
    assert broken_tie_worth(2, 1) == 1, "a group of one never differs; half is as far as two can"


def test_before_the_first_step_no_group_grows():
    def largest(gated: bool) -> int:
        return gated_ladder(
            8,
            ExpandConfig(gated=gated),
            evidence=(8, 8),
            tokens_per_rollout=100,
            prospects=None,
        ).largest

    assert (largest(gated=True), largest(gated=False)) == (8, 32)


def test_when_nothing_fresh_is_useful_flat_groups_grow():
    assert ladder(useful_per_group=0.0).next_size(WRONG, 8) == 16


@given(
    base=st.sampled_from([1, 2, 4, 5, 8]),
    histories=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), max_size=40),
    max_added=st.floats(0, 8),
    useful=st.floats(0, 0.5),
    gated=st.booleans(),
)
def test_all_groups_together_never_exceed_what_a_step_may_add(
    base, histories, max_added, useful, gated
):
    wanted = [
        ladder(evidence=h, base=base, useful_per_group=useful, gated=gated) for h in histories
    ]
    shared = share_ladders(wanted, histories, POPULATION, max_added=max_added)
    added = sum(of_group.largest - base for of_group in shared)
    assert added <= max_added * base * len(histories)
    for got, of_group in zip(shared, wanted, strict=True):
        assert got == of_group.up_to(got.largest), "rungs are cut from the top"
        if max_added == 0:
            assert got.largest == base
    if added + 32 <= max_added * base * len(histories):
        assert shared == wanted, "what is left over would have paid for any rung"


def test_groups_of_four_on_a_weak_model_at_most_double_the_step():
    """32 prompts, nearly all of them flat: the whole ladder would add 896 rollouts to 128."""
    histories = [(0.0, 8.0)] * 31 + [(4.0, 4.0)]
    wanted = [ladder(evidence=h, base=4, gated=False) for h in histories]
    assert sum(of_group.largest - 4 for of_group in wanted) == 896
    shared = share_ladders(wanted, histories, POPULATION, max_added=1.0)
    assert sum(of_group.largest - 4 for of_group in shared) == 128
    few = share_ladders(wanted, histories, POPULATION, max_added=0.04)
    assert [of_group.largest for of_group in few] == [4] * 31 + [8], "who varies is served first"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_group_size": 0}, "max_group_size=0"), ({"max_added": -0.1}, "max_added=-0.1")],
)
def test_an_impossible_size_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ExpandConfig(**wrong)


def test_inverse_weights_need_rungs_that_double():
    cfg = ExpandConfig(weight="inverse", max_group_size=20)
    with pytest.raises(UserError, match="choose max_group_size=16"):
        cfg.check(4)
    cfg.check(5)
    ExpandConfig(max_group_size=20).check(4)
