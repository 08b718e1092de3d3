"""Predicted lengths against the law they assume, and a history that is the same on every rank."""

from __future__ import annotations

import json
import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.distributed import Topology
from compass.errors import UserError
from compass.rl.placement.length import MEMORY, GroupLengths, LengthHistory
from compass.rl.placement.schedule import RolloutSchedule, ScheduleConfig
from compass.types import Prompt, RolloutGroup
from tests.rl.batches import make_group, make_rollout

LIMIT = 1000


def lengths_of(prompt_id: str, *num_tokens: int, domain: str = "math") -> GroupLengths:
    return GroupLengths(prompt_id=prompt_id, domain=domain, num_tokens=num_tokens)


def group(name: str, lengths: list[int]) -> RolloutGroup:
    return make_group(name, [make_rollout(f"{name}/{i}", 2, n) for i, n in enumerate(lengths)])


def prompts(*names: str) -> list[Prompt]:
    return [Prompt(id=name, messages=()) for name in names]


def test_the_mean_is_that_of_the_log_normal_law_of_the_quantiles():
    history = LengthHistory()
    assert history.mean("a", "math") is None
    history.merge([[lengths_of("a", 20, 40, 80), lengths_of("b", 10, 40, 70)]])
    for name in ("a", "b", "never met"):
        points = [(i + 0.5) / 4_000 for i in range(4_000)]
        by_quantiles = [history.predict(name, "math", quantile=q) for q in points]
        mean = sum(by_quantiles) / len(points)
        assert history.mean(name, "math") == pytest.approx(mean, rel=2e-3)


def test_a_prompt_is_predicted_from_itself_then_its_domain_then_everything():
    history = LengthHistory()
    assert history.predict("a", "math", quantile=0.5) is None
    history.merge([[lengths_of("a", 10, 10), lengths_of("b", 90, 90)]])
    history.merge([[lengths_of("c", 7, 7, domain="code")]])
    assert history.predict("a", "math", quantile=0.5) == pytest.approx(10)
    assert history.predict("never met", "math", quantile=0.5) == pytest.approx(30)
    everything = [10, 10, 90, 90]
    logs = MEMORY * sum(map(math.log, everything)) + 2 * math.log(7)
    expected = math.exp(logs / (MEMORY * 4 + 2))
    assert history.predict("never met", "law", quantile=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.7, 0.95])
def test_the_quantile_is_that_of_the_lognormal_law(quantile):
    """A prompt that is always 1000 tokens long in the mean of logs, with a spread of 0.5."""
    draw = random.Random(0)
    history = LengthHistory()
    drawn = [round(1000 * math.exp(draw.gauss(0, 0.5))) for _ in range(4000)]
    history.merge([[lengths_of("a", *drawn)]])
    expected = 1000 * math.exp(0.5 * NormalDist().inv_cdf(quantile))
    assert history.predict("a", "math", quantile=quantile) == pytest.approx(expected, rel=0.03)


def test_later_visits_weigh_more():
    history = LengthHistory()
    for length in (100, 100, 100, 800, 800):
        history.merge([[lengths_of("a", *[length] * 8)]])
    # Weights 1/16, 1/8, 1/4 of the short ones and 1/2, 1 of the long ones.
    share = 1.5 / (1.5 + 7 / 16)
    expected = math.exp(share * math.log(800) + (1 - share) * math.log(100))
    assert history.predict("a", "math", quantile=0.5) == pytest.approx(expected)


def test_few_rollouts_of_a_prompt_are_weighed_against_its_domain():
    """The mean is that of a normal model of prompts and rollouts, worked out on a grid."""
    draw = random.Random(1)
    step = []
    for p in range(200):
        center = draw.gauss(math.log(500), 0.8)
        drawn = [round(math.exp(draw.gauss(center, 0.5))) for _ in range(4)]
        step.append(lengths_of(f"{p}", *drawn))
    history = LengthHistory()
    history.merge([step])
    logs = {group.prompt_id: [math.log(n) for n in group.num_tokens] for group in step}
    everything = [x for of_prompt in logs.values() for x in of_prompt]
    mean = math.fsum(everything) / len(everything)
    total = math.fsum((x - mean) ** 2 for x in everything) / len(everything)
    centers = {name: math.fsum(x) / len(x) for name, x in logs.items()}
    within = math.fsum((x - centers[n]) ** 2 for n in logs for x in logs[n]) / (3 * len(logs))
    for name in ("0", "7", "42"):
        grid = [mean + i / 500 for i in range(-2500, 2501)]
        weights = [
            math.exp(
                -((c - mean) ** 2) / (2 * (total - within))
                - math.fsum((x - c) ** 2 for x in logs[name]) / (2 * within)
            )
            for c in grid
        ]
        expected = math.fsum(w * c for w, c in zip(weights, grid, strict=True)) / sum(weights)
        got = math.log(history.predict(name, "math", quantile=0.5))
        assert got == pytest.approx(expected, abs=1e-6)
        assert min(mean, centers[name]) < got < max(mean, centers[name])


def test_a_spread_that_few_rollouts_show_is_weighed_against_the_usual_one():
    history = LengthHistory()
    usual = [lengths_of(f"{p}", 100 + p, 400 + p, 200 + p, 800 + p) for p in range(50)]
    history.merge([[*usual, lengths_of("even", 300, 300), lengths_of("always", *[300] * 64)]])

    def spread(name: str) -> float:
        low, high = (history.predict(name, "math", quantile=q) for q in (0.1, 0.9))
        return math.log(high / low)

    # Two equal lengths say little of a spread, sixty-four say much.
    assert spread("always") < 0.6 * spread("even") < 0.6 * 1.1 * spread("0")


groups = st.builds(
    lambda name, lengths, domain: GroupLengths(
        prompt_id=name, domain=domain, num_tokens=tuple(lengths)
    ),
    st.sampled_from("abcdef"),
    st.lists(st.integers(0, 500), min_size=1, max_size=4),
    st.sampled_from(["math", "code"]),
)


@given(step=st.lists(groups, max_size=8), data=st.data())
def test_the_history_does_not_depend_on_which_rank_had_which_group(step, data):
    alone, dealt = LengthHistory(), LengthHistory()
    for _ in range(2):
        alone.merge([step])
        shuffled = data.draw(st.permutations(step))
        dealt.merge([shuffled[rank::3] for rank in range(3)])
    assert dealt.state_dict() == alone.state_dict()


@given(before=st.lists(groups, max_size=6), after=st.lists(groups, max_size=6))
def test_the_state_resumes_the_history_bit_for_bit(before, after):
    whole, first = LengthHistory(), LengthHistory()
    for history in (whole, first):
        history.merge([before])
    again = LengthHistory()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for history in (whole, again):
        history.merge([after])
    assert again.state_dict() == whole.state_dict()


# ---- the schedule


def test_long_prompts_are_started_first_once_their_lengths_are_known(topology: Topology):
    schedule = RolloutSchedule(ScheduleConfig(), topology, max_completion_tokens=LIMIT)
    names = prompts("short", "long", "new")
    assert len({share.priority for share in schedule.share(names, 2)}) == 1
    schedule.account([group("short", [10, 12]), group("long", [400, 500])])
    priority = {share.prompt.id: share.priority for share in schedule.share(names, 2)}
    # Of what is new anything must be feared.
    assert priority["new"] < priority["long"] < priority["short"] < 0
    median = RolloutSchedule(ScheduleConfig(quantile=0.5), topology, max_completion_tokens=LIMIT)
    median.load_state_dict(schedule.state_dict())
    priority = {share.prompt.id: share.priority for share in median.share(names, 2)}
    assert priority["long"] < priority["new"] < priority["short"] < 0
    plain = RolloutSchedule(
        ScheduleConfig(longest_first=False), topology, max_completion_tokens=LIMIT
    )
    plain.load_state_dict(schedule.state_dict())
    assert {share.priority for share in plain.share(names, 2)} == {0}


def test_the_error_is_that_of_the_median_before_the_step_is_learnt(topology: Topology):
    schedule = RolloutSchedule(ScheduleConfig(), topology, max_completion_tokens=LIMIT)
    first = schedule.account([group("a", [10, 40])])
    assert first["sched/length_mae"] == pytest.approx((990 + 960) / 2), "the limit, so far"
    second = schedule.account([group("a", [20, 50]), group("b", [20])])
    assert second["sched/length_mae"] == pytest.approx((0 + 30 + 0) / 3), "a median of 20"


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_outside_the_law_is_refused(quantile):
    with pytest.raises(UserError, match=f"schedule.quantile={quantile} must be above 0"):
        ScheduleConfig(quantile=quantile)
