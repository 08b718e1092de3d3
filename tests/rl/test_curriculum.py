"""Stages by pass rate, and the sampler that follows them and a pre-filter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.curriculum import (
    CurriculumConfig,
    PassRate,
    Stage,
    eligible,
    stage_at,
    stages_of,
)
from compass.rl.sampler import Curriculum, PromptSampler
from compass.types import Prompt

RATES = {str(i): i / 20 for i in range(21)}
PROMPTS = [Prompt(id=name, messages=()) for name in RATES]
STAGES = stages_of(
    CurriculumConfig(enabled=True, num_steps=(3, 4, 5), max_completion_tokens=(10, 20, 30)),
    num_steps=12,
    max_completion_tokens=99,
)


def known(prompt_id: str) -> float:
    return RATES[prompt_id]


def unknown(prompt_id: str) -> None:
    return None


def sampler(pass_rate: PassRate = known, log=lambda line: None, per_step: int = 4, keep=None):
    curriculum = Curriculum(stages=STAGES, pass_rate=pass_rate, log=log)
    return PromptSampler(
        PROMPTS, num_prompts_per_step=per_step, seed=1, keep=keep, curriculum=curriculum
    )


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


# ---- stages


def test_stages_last_their_steps_and_the_last_goes_on():
    in_step = [stage_at(STAGES, step) for step in range(1, 20)]
    assert in_step == [0] * 3 + [1] * 4 + [2] * 12


@given(num_steps=st.integers(3, 200))
def test_without_step_counts_stages_share_the_run_evenly(num_steps):
    stages = stages_of(CurriculumConfig(enabled=True), num_steps=num_steps, max_completion_tokens=7)
    in_step = [stage_at(stages, step) for step in range(1, num_steps + 1)]
    counts = [in_step.count(stage) for stage in range(3)]
    assert max(counts) - min(counts) <= 1
    assert {stage.max_completion_tokens for stage in stages} == {7}


def test_switched_off_it_is_one_stage_of_all_prompts():
    (stage,) = stages_of(CurriculumConfig(), num_steps=9, max_completion_tokens=7)
    chosen, widened = eligible(PROMPTS, stage, known, at_least=1)
    assert (len(chosen), widened, stage.max_completion_tokens) == (len(PROMPTS), 0.0, 7)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ({"bands": ()}, "bands is empty"),
        ({"bands": ((0.5, 0.2),)}, r"bands has \(0.5, 0.2\)"),
        ({"bands": ((0.5, 1.2),)}, r"bands has \(0.5, 1.2\)"),
        ({"num_steps": (1, 2)}, "num_steps has 2 entries"),
        ({"num_steps": (1, 2, 0)}, "each must be at least 1"),
        ({"max_completion_tokens": (1,)}, "max_completion_tokens has 1 entries"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(mistake, complaint):
    with pytest.raises(UserError, match=complaint):
        CurriculumConfig(**mistake)


# ---- who is eligible


@given(
    band=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    rates=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=20),
    data=st.data(),
)
def test_the_band_its_unknowns_and_no_more_than_needed(band, rates, data):
    """A prompt outside the band is there only if the band alone is too small, and then so is every
    prompt that is as near to it."""
    low, high = band
    at_least = data.draw(st.integers(1, len(rates)))
    prompts = [Prompt(id=str(i), messages=()) for i in range(len(rates))]
    stage = Stage(low=low, high=high, first_step=1, max_completion_tokens=1)
    chosen, widened = eligible(prompts, stage, lambda i: rates[int(i)], at_least=at_least)
    inside = [i for i, rate in enumerate(rates) if rate is None or low <= rate <= high]
    assert set(inside) <= set(chosen)
    if len(inside) >= at_least:
        assert (chosen, widened) == (inside, 0.0)
        return
    assert len(chosen) >= at_least

    def outside(i: int) -> float:
        return max(low - rates[i], rates[i] - high)

    added = [outside(i) for i in chosen if i not in inside]
    left = [outside(i) for i in range(len(rates)) if i not in chosen]
    assert max(added) == widened
    assert all(distance > widened for distance in left)
    assert sum(distance < widened for distance in added) + len(inside) < at_least


# ---- the sampler


def test_each_stage_draws_from_its_band_and_says_so():
    lines: list[str] = []
    walk = sampler(log=lines.append)
    for step in range(1, 13):
        drawn = {RATES[name] for name in ids(walk.next())}
        stage = STAGES[stage_at(STAGES, step)]
        assert len(drawn) == 4
        assert all(stage.low <= rate <= stage.high for rate in drawn)
        assert walk.stage == stage
    assert [line.partition(",")[0] for line in lines] == [
        f"curriculum: stage {i + 1} of 3 from step {step}" for i, step in enumerate((1, 4, 8))
    ]


def test_prompts_never_visited_belong_to_every_stage():
    walk = sampler(pass_rate=unknown)
    drawn = {name for _ in range(12) for name in ids(walk.next())}
    assert drawn == set(RATES)


def test_pass_rates_are_read_again_when_a_stage_begins_and_only_then():
    rates = dict.fromkeys(RATES, 0.5)
    walk = sampler(pass_rate=lambda name: rates[name])
    walk.next()
    rates.update(dict.fromkeys(list(RATES)[:10], 1.0))
    first = {name for _ in range(2) for name in ids(walk.next())}
    second = {name for _ in range(4) for name in ids(walk.next())}
    assert first & set(list(RATES)[:10])
    assert second <= set(list(RATES)[10:])


def test_a_band_with_too_few_prompts_widens_and_says_so():
    lines: list[str] = []
    walk = sampler(pass_rate=lambda name: 1.0 if name != "3" else 0.95, log=lines.append)
    assert len(set(ids(walk.next()))) == 4
    assert "21 of 21 prompts; the band was too narrow and grew by 0.1 at each end" in lines[0]


@given(before=st.integers(0, 14), per_step=st.integers(1, 9), bits=st.integers(0, 2**21 - 1))
def test_the_state_resumes_stage_eligible_prompts_and_place(before, per_step, bits):
    """What is known changes at each step; a resumed walk must not read it again mid-stage."""
    rates = dict.fromkeys(RATES, 0.5)

    def keep(prompt: Prompt) -> bool:
        return bool(bits >> int(prompt.id) & 1)

    def walk() -> PromptSampler:
        return sampler(lambda name: rates[name], per_step=per_step, keep=keep)

    one = walk()
    for step in range(before):
        one.next()
        rates[str(step)] = 0.0
    two = walk()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(8):
        assert ids(one.next()) == ids(two.next())
        assert ids(one.last_skipped) == ids(two.last_skipped)
        assert one.stage == two.stage


# ---- the pre-filter


@given(
    count=st.integers(1, 15),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_a_full_step_always_comes_out_and_every_prompt_met_is_accounted_for(count, data, seed):
    per_step = data.draw(st.integers(1, count))
    refused = data.draw(st.sets(st.integers(0, count - 1)))
    asked: list[str] = []

    def keep(prompt: Prompt) -> bool:
        asked.append(prompt.id)
        return int(prompt.id) not in refused

    walk = PromptSampler(PROMPTS[:count], num_prompts_per_step=per_step, seed=seed, keep=keep)
    for _ in range(6):
        asked.clear()
        drawn = ids(walk.next())
        skipped = ids(walk.last_skipped)
        assert len(drawn) == len(set(drawn)) == per_step
        assert sorted(drawn + skipped) == sorted(asked)
        assert len(asked) == len(set(asked))
        assert all(int(name) in refused for name in skipped)
        num_kept = count - len(refused)
        if per_step <= num_kept:
            assert not {int(name) for name in drawn} & refused
        else:
            # Nothing better was left: all kept prompts, then refused ones in the order met.
            assert [name for name in asked if int(name) in refused] == (
                [name for name in drawn if int(name) in refused] + skipped
            )
            assert len(asked) == count


def test_a_filter_does_not_favour_prompts_it_lets_through():
    """Kept prompts come about equally often, wherever the epochs end."""
    walk = PromptSampler(
        PROMPTS, num_prompts_per_step=3, seed=0, keep=lambda prompt: int(prompt.id) % 2 == 0
    )
    counts = dict.fromkeys(ids(PROMPTS[::2]), 0)
    for _ in range(400):
        for name in ids(walk.next()):
            counts[name] += 1
    mean = 1200 / len(counts)
    assert all(0.85 * mean < count < 1.15 * mean for count in counts.values())
