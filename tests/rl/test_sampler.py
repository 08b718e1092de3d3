"""The walk through the prompts: fair, the same for every layout, resumable from its state."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.sampler import PromptSampler, rank_share
from compass.types import Prompt


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=str(i), messages=({"role": "user", "content": f"{i}?"},)) for i in range(count)
    ]


def steps(sampler: PromptSampler, count: int) -> list[list[str]]:
    return [[prompt.id for prompt in sampler.next()] for _ in range(count)]


sizes = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**31)


@given(size=sizes, seed=seeds)
def test_an_epoch_meets_each_prompt_at_most_once_and_all_when_steps_divide_it(size, seed):
    count, per_step = size
    sampler = PromptSampler(prompts(count), num_prompts_per_step=per_step, seed=seed)
    for _ in range(3):
        epoch = [name for step in steps(sampler, count // per_step) for name in step]
        assert len(epoch) == len(set(epoch)) == count - count % per_step
        assert set(epoch) <= {str(i) for i in range(count)}


@pytest.mark.parametrize(
    "seed", [2**44, -(2**60), 2**63, 2**64, -(2**64), 10**999], ids=int.bit_length
)
def test_a_seed_may_be_of_any_size(seed):
    def walk(seed):
        sampler = PromptSampler(prompts(40), num_prompts_per_step=40, seed=seed)
        return steps(sampler, 3)

    assert walk(seed) == walk(seed)
    assert len({tuple(step) for step in [*walk(seed), *walk(seed + 1), *walk(seed + 2**64)]}) == 9


@given(size=sizes, seed=seeds, before=st.integers(0, 9))
def test_the_state_resumes_the_walk(size, seed, before):
    count, per_step = size
    sampler = PromptSampler(prompts(count), num_prompts_per_step=per_step, seed=seed)
    steps(sampler, before)
    state = json.loads(json.dumps(sampler.state_dict()))
    again = PromptSampler(prompts(count), num_prompts_per_step=per_step, seed=seed)
    again.load_state_dict(state)
    assert steps(again, 5) == steps(sampler, 5)


@given(count=st.integers(0, 20), world_size=st.integers(1, 5))
def test_ranks_share_all_prompts_evenly(count, world_size):
    shares = [rank_share(prompts(count), rank, world_size) for rank in range(world_size)]
    names = sorted(int(prompt.id) for share in shares for prompt in share)
    assert names == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_and_seeds_differ():
    walks = {
        tuple(step)
        for seed in range(3)
        for step in steps(PromptSampler(prompts(20), num_prompts_per_step=20, seed=seed), 3)
    }
    assert len(walks) == 9


def test_those_left_over_differ_from_epoch_to_epoch():
    sampler = PromptSampler(prompts(5), num_prompts_per_step=4, seed=0)
    assert {name for step in steps(sampler, 12) for name in step} == set("01234")


@pytest.mark.parametrize("per_step", [0, 4, -1])
def test_a_step_the_prompts_cannot_fill_is_refused(per_step):
    with pytest.raises(UserError, match=f"num_prompts_per_step={per_step}, but there are 3"):
        PromptSampler(prompts(3), num_prompts_per_step=per_step, seed=0)


def test_the_state_of_other_prompts_is_refused():
    state = PromptSampler(prompts(3), num_prompts_per_step=1, seed=0).state_dict()
    with pytest.raises(UserError, match="walked through 3 prompts, these are 4"):
        PromptSampler(prompts(4), num_prompts_per_step=1, seed=0).load_state_dict(state)
