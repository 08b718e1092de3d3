"""Shaping follows its formulas and never ranks a lower reward above a higher one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.zero_variance.reshape import ReshapeConfig, overlong, repetition

L_MAX, L_CACHE = 100, 20


@st.composite
def configs(draw: st.DrawFn) -> ReshapeConfig:
    """Any weights that validation lets through, up to its edge."""
    total = draw(st.floats(0, 0.499999))
    first, second = sorted([draw(st.floats(0, 1)), draw(st.floats(0, 1))])
    return ReshapeConfig(
        w_len=total * first,
        w_rep=total * (second - first),
        beta=total * (1 - second),
        tau=draw(st.floats(0, 0.99)),
        l_max=draw(st.integers(20, 200)),
        l_cache=draw(st.integers(1, 20)),
    )


def rollouts(verdicts: st.SearchStrategy):
    return st.lists(st.tuples(verdicts, st.integers(0, 300), st.floats(0, 1)), max_size=12)


TERNARY = st.sampled_from([0.0, 0.5, 1.0])


def shaped(cfg: ReshapeConfig, group) -> list:
    verdicts, lengths, repetitions = zip(*group, strict=True) if group else ((), (), ())
    all_right = all(verdict >= 1 for verdict in verdicts if verdict is not None)
    return cfg.bind(200)(verdicts, lengths, repetitions, all_right=all_right)


@given(configs(), rollouts(TERNARY | st.integers(0, 7).map(lambda i: i / 7) | st.floats(0, 1)))
def test_a_better_verdict_always_earns_more(cfg, group):
    rewards = shaped(cfg, group)
    for (better, *_), high in zip(group, rewards, strict=True):
        for (worse, *_), low in zip(group, rewards, strict=True):
            if better > worse + 1e-6:
                assert high > low


@given(configs(), rollouts(st.floats(-100, 100) | st.sampled_from([-1.0, 0.1, 1.0])), st.booleans())
def test_shaping_never_ranks_a_lower_reward_above_a_higher_one(cfg, group, all_right):
    """Any rewards, whatever the verdicts were."""
    given_rewards, lengths, repetitions = zip(*group, strict=True) if group else ((), (), ())
    rewards = cfg.bind(200)(given_rewards, lengths, repetitions, all_right=all_right)
    for better, high in zip(given_rewards, rewards, strict=True):
        for worse, low in zip(given_rewards, rewards, strict=True):
            if better > worse + 1e-6:
                assert high > low


def test_rewards_that_differ_along_a_chain_of_equal_ones_keep_their_order():
    chain = [0.0, 9e-7, 1.8e-6]
    low, _, high = ReshapeConfig().bind(L_MAX)(chain, [1, 1, L_MAX], [0, 0, 1], all_right=False)
    assert high > low


@given(configs(), rollouts(TERNARY))
def test_a_right_answer_outranks_a_wrong_one_of_any_other_group(cfg, group):
    lowest_right = 1 - (cfg.w_len + cfg.w_rep + cfg.beta)
    for (verdict, *_), reward in zip(group, shaped(cfg, group), strict=True):
        assert reward <= verdict
        assert verdict < 1 or reward >= lowest_right - 1e-12 > 0.5


@given(configs(), rollouts(st.none() | TERNARY))
def test_rewards_equal_the_formula(cfg, group):
    known = [(v, n) for v, n, _ in group if v is not None]
    lengths = [n for _, n in known]
    all_right = all(v == 1 for v, _ in known)
    for (verdict, length, rep), reward in zip(group, shaped(cfg, group), strict=True):
        if verdict is None:
            assert reward is None
            continue
        if length <= cfg.l_max - cfg.l_cache:
            punishment = 0.0
        elif length <= cfg.l_max:
            punishment = ((cfg.l_max - cfg.l_cache) - length) / cfg.l_cache
        else:
            punishment = -1.0
        excess = (rep - cfg.tau) / (1 - cfg.tau)
        expected = verdict + cfg.w_len * punishment - cfg.w_rep * min(max(excess, 0), 1)
        if all_right:
            spread = max(lengths) - min(lengths) + 1
            expected -= cfg.beta * (length - min(lengths)) / spread
        assert reward == pytest.approx(expected, abs=1e-12)


def test_verdicts_closer_than_a_half_scale_shaping_down():
    """Tests passed: 9 and 10 of 10. The worst shaping takes less than the tenth between them."""
    cfg = ReshapeConfig(w_len=0.2, w_rep=0.2)
    clean, foul = cfg.bind(L_MAX)([0.9, 1.0], [10, 100], [0.0, 1.0], all_right=False)
    assert (clean, foul) == (0.9, pytest.approx(1 - 0.2 * 0.4))


def test_among_right_answers_the_shorter_wins():
    rewards = ReshapeConfig(beta=0.05).bind(1000)(
        [1.0] * 4, [50, 10, 10, 30], [0.0] * 4, all_right=True
    )
    assert rewards[1] == rewards[2] == 1 > rewards[3] > rewards[0] > 1 - 0.05


def test_right_answers_are_not_ranked_by_length_unless_asked():
    rewards = ReshapeConfig().bind(1000)([1.0] * 4, [50, 10, 10, 30], [0.0] * 4, all_right=True)
    assert rewards == [1.0] * 4


def test_among_wrong_answers_short_ones_do_not_win():
    rewards = ReshapeConfig().bind(1000)([0.0] * 4, [50, 10, 10, 800], [0.0] * 4, all_right=False)
    assert rewards == [0.0] * 4


def test_overlong_and_looping_wrong_answers_rank_below_others():
    rewards = ReshapeConfig().bind(L_MAX)(
        [0.0] * 3, [10, L_MAX, 10], [0.0, 0.0, 0.9], all_right=False
    )
    assert rewards[0] == 0 > max(rewards[1], rewards[2])


@pytest.mark.parametrize(
    ("length", "value"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (999, -1)]
)
def test_overlong_is_a_ramp_over_the_last_tokens(length, value):
    assert overlong(length, l_max=L_MAX, l_cache=L_CACHE) == pytest.approx(value)


@pytest.mark.parametrize(
    ("token_ids", "value"),
    [
        ([], 0),
        ([7, 7, 7], 0),
        ([7, 7, 7, 7], 0),
        ([7] * 13, 1 - 1 / 10),
        (list(range(50)), 0),
        ([1, 2, 3, 4] * 3, 1 - 4 / 9),
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(token_ids, value):
    assert repetition(token_ids) == pytest.approx(value)


def test_lengths_follow_the_completion_limit_by_default():
    rewards = ReshapeConfig(w_len=0.1, beta=0).bind(50)(
        [0.0] * 3, [40, 45, 50], [0.0] * 3, all_right=False
    )
    assert rewards == pytest.approx([0, -0.05, -0.1])


def test_a_length_beyond_the_completion_limit_gives_way_to_it():
    """Otherwise nothing written under the limit would reach the ramp."""
    late, early = (
        ReshapeConfig(w_len=0.1, l_max=l_max).bind(50)([0.0], [50], [0.0], all_right=False)
        for l_max in (1000, 50)
    )
    assert late == early == pytest.approx([-0.1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"w_len": 0.3}, r"w_len \+ w_rep \+ beta = 0.5 must"),
        ({"w_rep": -0.1}, "w_rep=-0.1"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"tau": 1.0}, "tau=1.0"),
        ({"l_max": 0}, "l_max=0"),
        ({"l_max": 10, "l_cache": 11}, "l_cache=11"),
    ],
)
def test_weights_that_could_reorder_answers_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ReshapeConfig(**wrong).bind(L_MAX)
