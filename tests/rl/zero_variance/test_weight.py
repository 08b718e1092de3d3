"""Growing on verdicts leaves the direction of a prompt's gradient alone; what it weighs follows
from the exact law of its verdicts; and lengths that say nothing of them get no gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from compass.rl.advantage import AdvantageConfig, group_advantages, unshaped_rewards
from compass.rl.zero_variance.expand import ExpandConfig, ExpandWeight, Ladder
from compass.rl.zero_variance.growth import Growth, plan_growth
from compass.rl.zero_variance.history import PrefilterConfig, PromptHistory
from compass.types import Prompt, RolloutGroup
from tests.rl.batches import make_group, make_rollout, make_score
from tests.rl.zero_variance.groups import MIXED, visit

CENTRED, GRPO = AdvantageConfig(normalize="none"), AdvantageConfig()
WHOLE = Ladder(base=8, right=(16, 32), wrong=(16, 32))
HELD = Ladder(base=8)
RATES = (0.003, 0.05, 0.3, 0.5, 0.9, 0.999)


def group_of(verdicts: Sequence[float | None]) -> RolloutGroup:
    rollouts = [
        replace(make_rollout("p", score=make_score(verdict)), sample=i)
        for i, verdict in enumerate(verdicts)
    ]
    return make_group("p", rollouts)


def paths(ladder: Ladder, rate: float) -> Iterator[tuple[float, list[float]]]:
    """Every way a group's verdicts can come out, by the number of right answers on each rung, with
    its probability."""
    open_paths = [(1.0, [0.0] * 0, ladder.base)]
    while open_paths:
        chance, verdicts, size = open_paths.pop()
        more = size - len(verdicts)
        for right in range(more + 1):
            here = chance * math.comb(more, right) * rate**right * (1 - rate) ** (more - right)
            longer = verdicts + [1.0] * right + [0.0] * (more - right)
            larger = ladder.next_size(longer, size)
            if larger == size:
                yield here, longer
            else:
                open_paths.append((here, longer, larger))


def expected_weight(
    ladder: Ladder, weight: ExpandWeight, rate: float, cfg: AdvantageConfig
) -> float:
    """E[sum over right answers of weight * A] / (N_0 p (1 - p)): the gradient of a prompt along
    E[score | right] - E[score | wrong], beside that of its pass rate."""
    growth = Growth({"p": ladder}, weight)
    total = 0.0
    for chance, verdicts in paths(ladder, rate):
        group = growth.weighed(group_of(verdicts))
        (advantages,) = group_advantages([group], [unshaped_rewards(group)], cfg)
        pairs = zip(verdicts, advantages, strict=True)
        total += chance * group.weight * math.fsum(a for verdict, a in pairs if verdict)
    return total / (ladder.base * rate * (1 - rate))


@pytest.mark.parametrize("rate", RATES)
def test_without_growth_every_prompt_weighs_the_same(rate):
    for weight in ("base", "inverse", "none"):
        assert expected_weight(HELD, weight, rate, CENTRED) == pytest.approx(7 / 8)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "ladder", [WHOLE, WHOLE.up_to(16), Ladder(base=3, right=(6, 12), wrong=(6, 12))]
)
def test_inverse_weights_are_exactly_those_of_a_group_that_cannot_grow(ladder, rate):
    held = (ladder.base - 1) / ladder.base
    assert expected_weight(ladder, "inverse", rate, CENTRED) == pytest.approx(held, rel=1e-9)


def test_with_one_open_sign_inverse_weights_lose_the_rung_on_the_other_side():
    """A rung that is reached from wrong answers alone never sees groups that begin with right
    ones; what it can see is weighed right."""
    wrong_only = Ladder(base=8, wrong=(16,))
    weights = [expected_weight(wrong_only, "inverse", p, CENTRED) / (7 / 8) for p in RATES]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(1, abs=1e-3)
    assert weights[-1] == pytest.approx(0.5, abs=1e-3)


def test_rare_prompts_outweigh_others_where_grown_groups_count_in_full():
    def against_even(weight: ExpandWeight, ladder: Ladder = WHOLE) -> float:
        rare, even = (expected_weight(ladder, weight, p, GRPO) for p in (0.01, 0.5))
        return rare / even

    assert against_even("none", HELD) == pytest.approx(1.41, abs=0.01)
    assert against_even("none") == pytest.approx(8.13, abs=0.01)
    assert against_even("base") == pytest.approx(3.57, abs=0.01)
    assert against_even("inverse") == pytest.approx(1.83, abs=0.01), "exact for r - mean alone"


def test_a_grown_group_counts_as_one_of_base_size():
    growth = Growth({"p": WHOLE}, "base")
    for size in (8, 16, 32):
        group = growth.weighed(group_of([0.0] * (size - 1) + [1.0]))
        assert group.weight * size == group.count * size == 8


def test_inverse_weights_of_method_by_hand():
    """l c C(16, k) / (C(8, k) + C(8, k - 8)), the c of 16 over that of 8, and N_0 / N."""
    growth = Growth({"p": WHOLE.up_to(16)}, "inverse")
    group = growth.weighed(group_of([0.0] * 8 + [1.0] * 3 + [0.0] * 5))
    bessel = (16 / 15) / (8 / 7)
    expected = 0.5 * math.comb(16, 3) / math.comb(8, 3) * bessel * 8 / 16
    assert group.weight == pytest.approx(expected)
    assert group.count == 0.5
    at_base = growth.weighed(group_of([0.0] * 7 + [1.0]))
    assert (at_base.weight, at_base.count) == (0.5, 1)
    flat = growth.weighed(group_of([0.0] * 16))
    assert flat.weight == flat.count == 0.5, "shaping and RL-ZVP, as much as for any other group"


def test_verdicts_that_failed_take_no_part_in_inverse_weights():
    growth = Growth({"p": WHOLE.up_to(16)}, "inverse")
    some = [None, None, *[0.0] * 6, *[1.0] * 2, *[0.0] * 6]
    group = growth.weighed(group_of(some))
    chance = math.comb(12, 6) / math.comb(14, 6)
    assert group.weight == pytest.approx(0.5 * (14 / 13) / (8 / 7) / chance * 8 / 16)


# ---- the gate, and lengths


def history() -> PromptHistory:
    """After a step in which few groups were useful; the prompt itself has varied."""
    seen = PromptHistory(PrefilterConfig(), seed=0)
    flat = [visit(f"flat {i}", [i % 2] * 8) for i in range(12)]
    seen.merge([[*flat, visit("mixed", MIXED), visit("p", MIXED)]])
    return seen


def test_lengths_that_say_nothing_of_the_verdict_get_no_gradient():
    """A policy of two independent choices, right or wrong and short or long, in many groups, of
    which many grow. The gradient of the length's logit is a mean of terms of mean zero."""
    rate, long_share, num_groups = 0.12, 0.5, 30_000
    growth = plan_growth(
        history(),
        [Prompt(id="p", messages=())],
        ExpandConfig(max_added=3.0),
        group_size=8,
        expected_tokens=lambda _: 12.0,
    )
    ladder = growth.ladders["p"]
    assert ladder.largest > 8, "the gate is open for this prompt"
    random = np.random.default_rng(0)
    right = (random.random((num_groups, 32)) < rate).astype(float)
    length_score = (random.random((num_groups, 32)) < long_share) - long_share
    known: dict[tuple[float, ...], list[float]] = {}
    gradients, num_grown = [], 0
    for verdicts, scores in zip(right.tolist(), length_score, strict=True):
        size, previous = 8, 0
        while size != previous:
            previous, size = size, ladder.next_size(verdicts[:size], size)
        num_grown += size > 8
        key = tuple(verdicts[:size])
        if key not in known:
            group = growth.weighed(group_of(verdicts[:size]))
            (advantages,) = group_advantages([group], [unshaped_rewards(group)], GRPO)
            known[key] = [group.weight * advantage for advantage in advantages]
        gradients.append(float(np.dot(known[key], scores[:size])))
    assert num_grown > num_groups / 10
    standard_error = np.std(gradients) / math.sqrt(num_groups)
    assert abs(np.mean(gradients)) < 4 * standard_error
