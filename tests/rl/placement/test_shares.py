"""Every sample is written once, whole groups are split only where it helps, ranks end up even."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.rl.placement.balance import EVEN
from compass.rl.placement.shares import QUEUE_PARTS, Balance, Share, share_rollouts
from compass.types import Prompt


def share(
    predicted: list[float], group_size: int, world_size: int, balance: Balance = "rollouts"
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


@pytest.mark.parametrize("balance", ["queue", "samples", "rollouts", "groups", "off"])
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
    if balance == "off":
        assert all(s.writer == s.home for s in shares)
    if balance in ("groups", "off"):
        assert len(shares) == len(predicted)
    if balance == "queue":
        assert {s.writer for s in shares} == {None}
        assert len(shares) <= QUEUE_PARTS * len(predicted)


@given(predicted=lengths, group_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_no_single_sample_could_move_and_bring_the_extremes_closer(
    predicted, group_size, world_size
):
    shares = share(predicted, group_size, world_size)
    of_rank = loads(shares, predicted, world_size)
    gap = max(of_rank) - min(of_rank)
    if gap <= EVEN * sum(of_rank) / world_size:
        return
    fullest = of_rank.index(max(of_rank))
    smallest = min(predicted[int(s.prompt.id)] for s in shares if s.writer == fullest)
    assert smallest >= gap * (1 - EVEN) * (1 - 1e-9)


@given(predicted=lengths, group_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_splitting_never_makes_the_fullest_rank_fuller(predicted, group_size, world_size):
    split, whole = (
        max(loads(share(predicted, group_size, world_size, how), predicted, world_size))
        for how in ("rollouts", "groups")
    )
    assert split <= whole * (1 + 1e-9)


def test_groups_of_like_lengths_stay_whole_and_at_home():
    shares = share([50.0] * 8, group_size=4, world_size=4)
    assert all(s.writer == s.home and s.num_samples == 4 for s in shares)


def test_one_long_group_is_split_over_all_ranks():
    shares = share([1000.0, 1.0, 1.0], group_size=8, world_size=4)
    assert Counter(s.writer for s in shares if s.prompt.id == "0") == {r: 1 for r in range(4)}
    assert all(s.num_samples == 2 for s in shares if s.prompt.id == "0")


def test_long_tails_are_shared_within_a_few_percent():
    draw = random.Random(0)
    predicted = [draw.lognormvariate(4, 1) for _ in range(16)]
    for world_size in (2, 4, 8):
        of_rank = loads(share(predicted, 8, world_size), predicted, world_size)
        assert max(of_rank) * world_size / sum(of_rank) < 1.04


@given(predicted=lengths, group_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_every_rank_has_its_part_of_every_group(predicted, group_size, world_size):
    shares = share(predicted, group_size, world_size, "samples")
    for p in range(len(predicted)):
        counts = [0] * world_size
        for s in shares:
            if s.prompt.id == str(p):
                counts[s.writer] += s.num_samples
        assert max(counts) - min(counts) <= 1
    # What is left over goes to the emptiest: nobody is ahead by more than one sample.
    of_rank = loads(shares, predicted, world_size)
    assert max(of_rank) - min(of_rank) <= max(predicted) * (1 + 1e-9)
