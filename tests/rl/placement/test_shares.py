"""Every sample is written once, and every rank has its part of every group."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.rl.placement.shares import QUEUE_PARTS, Balance, Share, share_rollouts, whole_groups
from compass.types import Prompt


def share(
    predicted: list[float], group_size: int, world_size: int, balance: Balance = "samples"
) -> list[Share]:
    prompts = [Prompt(id=str(i), messages=()) for i in range(len(predicted))]
    return share_rollouts(
        prompts, predicted, group_size=group_size, world_size=world_size, balance=balance
    )


def loads(shares: list[Share], predicted: list[float], world_size: int) -> list[float]:
    of_rank = [0.0] * world_size
    for s in shares:
        of_rank[s.writer] += s.num_samples * predicted[int(s.prompt.id)]
    return of_rank


lengths = st.lists(st.floats(1, 1000), min_size=1, max_size=12)


@pytest.mark.parametrize("balance", ["queue", "samples"])
@given(predicted=lengths, group_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_every_sample_of_every_prompt_is_written_once(balance, predicted, group_size, world_size):
    shares = share(predicted, group_size, world_size, balance)
    samples = Counter(
        (s.prompt.id, sample)
        for s in shares
        for sample in range(s.first_sample, s.first_sample + s.num_samples)
    )
    everything = {(str(p), s) for p in range(len(predicted)) for s in range(group_size)}
    assert samples == dict.fromkeys(everything, 1)
    assert all(s.home == int(s.prompt.id) % world_size for s in shares)
    if balance == "queue":
        assert {s.writer for s in shares} == {None}
        assert len(shares) <= QUEUE_PARTS * len(predicted)


def test_whole_groups_are_written_at_home():
    prompts = [Prompt(id=str(i), messages=()) for i in range(5)]
    shares = whole_groups(prompts, 3, world_size=2)
    assert [s.prompt for s in shares] == prompts
    assert all(s.writer == s.home == int(s.prompt.id) % 2 for s in shares)
    assert {(s.first_sample, s.num_samples) for s in shares} == {(0, 3)}


@given(predicted=lengths, group_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_every_rank_has_its_part_of_every_group(predicted, group_size, world_size):
    shares = share(predicted, group_size, world_size)
    for p in range(len(predicted)):
        counts = [0] * world_size
        for s in shares:
            if s.prompt.id == str(p):
                counts[s.writer] += s.num_samples
        assert max(counts) - min(counts) <= 1
    # What is left over goes to the emptiest: nobody is ahead by more than one sample.
    of_rank = loads(shares, predicted, world_size)
    assert max(of_rank) - min(of_rank) <= max(predicted) * (1 + 1e-9)
