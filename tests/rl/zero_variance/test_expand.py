"""The ladder doubles flat groups; the gate stops where a fresh prompt promises more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.zero_variance.expand import ExpandConfig, gated_size, next_size
from compass.rl.zero_variance.history import Prospects
from compass.rl.zero_variance.population import Population
from tests.rl.zero_variance.groups import MIXED, RIGHT, WRONG

TOKENS_PER_ROLLOUT = 100


def grown(
    verdicts, *, evidence=(0.0, 0.0), useful_per_group=0.3, tokens=TOKENS_PER_ROLLOUT, gated=True
) -> int:
    """Size after one decision, where a fresh group of 8 is useful with the given probability."""
    prospects = Prospects(
        population=Population(impossible=0.35, trivial=0.25),
        useful_per_token=useful_per_group / (8 * TOKENS_PER_ROLLOUT),
    )
    return gated_size(
        verdicts,
        len(verdicts),
        ExpandConfig(gated=gated),
        evidence=evidence,
        num_tokens=tokens * len(verdicts),
        prospects=prospects,
    )


@pytest.mark.parametrize("flat", [RIGHT, WRONG, (0.5,) * 8])
def test_the_ladder_doubles_flat_groups_up_to_the_largest(flat):
    sizes = [next_size(flat, current, ExpandConfig()) for current in (8, 16, 32)]
    assert sizes == [16, 32, 32]
    assert next_size(flat, 16, ExpandConfig(max_group_size=20)) == 20
    assert next_size(flat, 40, ExpandConfig()) == 40
    assert next_size(flat, 8, ExpandConfig(enabled=False)) == 8


@pytest.mark.parametrize("verdicts", [MIXED, (0.5, 1.0), ()])
def test_a_group_with_a_signal_or_without_a_verdict_stays(verdicts):
    assert next_size(verdicts, 8, ExpandConfig()) == 8


def test_some_invalid_rollouts_do_not_stop_the_ladder():
    assert next_size((1.0,) * 3, 8, ExpandConfig()) == 16


@pytest.mark.parametrize(
    ("verdicts", "evidence"), [(RIGHT, (0, 0)), (WRONG, (0, 0)), (RIGHT, (16, 0)), (WRONG, (0, 16))]
)
def test_prompts_that_look_hopeless_give_way_to_fresh_ones(verdicts, evidence):
    assert grown(verdicts, evidence=evidence) == 8
    assert grown(verdicts, evidence=evidence, gated=False) == 16


@pytest.mark.parametrize(("verdicts", "evidence"), [(RIGHT, (8, 8)), (WRONG, (6, 10))])
def test_bad_luck_on_a_prompt_that_is_known_to_vary_is_tried_again(verdicts, evidence):
    assert grown(verdicts, evidence=evidence) == 16


def test_long_rollouts_are_dearer():
    sizes = [grown(WRONG, evidence=(6.0, 10.0), tokens=t) for t in (50, 100, 200, 400, 800)]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (16, 8)


@given(
    evidence=st.tuples(st.floats(0, 20), st.floats(0, 20)),
    verdict=st.sampled_from([0.0, 1.0]),
    count=st.sampled_from([8, 16]),
    factor=st.sampled_from([0.99, 1.01]),
)
def test_the_gate_opens_exactly_where_breaking_the_tie_is_the_better_buy(
    evidence, verdict, count, factor
):
    """The group doubles, so its price per rollout equals a fresh group's when both have `count`."""
    passes, failures = evidence[0] + count * verdict, evidence[1] + count * (1 - verdict)
    chance = Population(impossible=0.35, trivial=0.25).break_probability(
        (passes, failures), right=verdict == 1, num_rollouts=count
    )
    fresh = chance * factor * 8 / count
    expected = count if factor > 1 else 2 * count
    assert grown((verdict,) * count, evidence=evidence, useful_per_group=fresh) == expected


def test_before_the_first_step_no_group_grows():
    def size(gated: bool) -> int:
        return gated_size(
            WRONG,
            8,
            ExpandConfig(gated=gated),
            evidence=(8, 8),
            num_tokens=800,
            prospects=None,
        )

    assert (size(gated=True), size(gated=False)) == (8, 16)


def test_when_nothing_fresh_is_useful_flat_groups_grow():
    assert grown(WRONG, useful_per_group=0.0) == 16


def test_an_impossible_size_is_refused():
    with pytest.raises(UserError, match="max_group_size=0"):
        ExpandConfig(max_group_size=0)
