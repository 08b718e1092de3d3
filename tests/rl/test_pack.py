"""Packing loses nothing, doubles nothing, keeps the cap, and cuts minibatches alike at any world
size. What is expected is gathered from the rollouts token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.pack import (
    PackConfig,
    Part,
    Selection,
    Trained,
    cut,
    filler_microbatch,
    make_part,
    pack_microbatch,
)
from compass.types import Microbatch, Rollout, RolloutGroup
from tests.rl.batches import (
    SPEC,
    make_group,
    make_rollout,
    pack_batch,
    tokens_of,
)

Batch = tuple[list[RolloutGroup], list[list[float]]]


@st.composite
def batches(draw, max_groups: int = 5) -> Batch:
    """Groups of rollouts of mixed lengths with their advantages, some of them exactly zero."""
    groups, advantages = [], []
    for g in range(draw(st.integers(0, max_groups))):
        size = draw(st.integers(1, 4))
        lengths = [(draw(st.integers(1, 6)), draw(st.integers(1, 9))) for _ in range(size)]
        rollouts = [make_rollout(f"{g}/{i}", *length) for i, length in enumerate(lengths)]
        groups.append(make_group(str(g), rollouts))
        advantages.append([draw(st.sampled_from([0.0, -1.5, 0.25])) for _ in range(size)])
    return groups, advantages


def float32(value: float) -> float:
    return torch.tensor(value).item()


def loss_tokens(rollout: Rollout, advantage: float) -> list[tuple]:
    """Each loss token with all that the trainer must know of it."""
    tokens = tokens_of(rollout)
    return [
        (
            int(tokens.token_ids[i - 1]),
            i - 1,
            int(tokens.token_ids[i]),
            float32(advantage),
            float(tokens.rollout_logprobs[i]),
            tuple(tokens.routed_experts[i - 1].flatten().tolist()),
        )
        for i in range(1, len(tokens.token_ids))
        if tokens.loss_mask[i]
    ]


def tokens_in(microbatch: Microbatch) -> list[tuple]:
    """The same, read from a microbatch."""
    return [
        (
            int(microbatch.token_ids[row]),
            int(microbatch.positions[row]),
            int(microbatch.targets[r]),
            float(microbatch.advantages[r]),
            float(microbatch.rollout_logprobs[r]),
            tuple(microbatch.routed_experts[row].flatten().tolist()),
        )
        for r, row in enumerate(microbatch.rows.tolist())
    ]


def pairs(batch: Batch) -> Iterable[tuple[Rollout, float]]:
    for group, advantages in zip(*batch, strict=True):
        yield from zip(group.rollouts, advantages, strict=True)


@given(batch=batches(), num_minibatches=st.integers(1, 3), cap=st.integers(1, 40))
def test_every_trained_token_appears_once_with_all_that_belongs_to_it(
    topology, batch, num_minibatches, cap
):
    cfg = PackConfig(num_minibatches=num_minibatches, max_tokens_per_microbatch=cap)
    minibatches = pack_batch(*batch, topology, cfg).minibatches
    assert len(minibatches) == num_minibatches
    microbatches = [m for minibatch in minibatches for m in minibatch.microbatches]
    got = Counter(token for m in microbatches for token in tokens_in(m))
    trained = [(r, a) for r, a in pairs(batch) if a != 0]
    assert got == Counter(token for pair in trained for token in loss_tokens(*pair))
    assert sum(minibatch.num_trained_rollouts for minibatch in minibatches) == len(trained)
    for m in microbatches:
        assert sum(m.sequence_lengths) == len(m.token_ids) == len(m.routed_experts)
        assert sum(m.sequence_lengths) <= cap or m.num_sequences == 1


@given(batch=batches().filter(lambda batch: any(a for _, a in pairs(batch))))
def test_sequences_lie_end_to_end_with_their_whole_context(topology, batch):
    cfg = PackConfig(max_tokens_per_microbatch=30)
    fed = {tuple(tokens_of(r).token_ids[:-1].tolist()) for r, _ in pairs(batch)}
    (minibatch,) = pack_batch(*batch, topology, cfg, replay=False).minibatches
    for microbatch in minibatch.microbatches:
        assert microbatch.routed_experts is None
        starts = torch.tensor([0, *microbatch.sequence_lengths]).cumsum(0).tolist()
        for b, (start, end) in enumerate(pairwise(starts)):
            assert microbatch.positions[start:end].tolist() == list(range(end - start))
            assert tuple(microbatch.token_ids[start:end].tolist()) in fed
            rows = microbatch.rows[microbatch.sequence_ids == b]
            assert ((rows >= start) & (rows < end)).all()
            assert len(rows) > 0
        assert (microbatch.sequence_ids.diff() >= 0).all()


@pytest.mark.parametrize("denominator", ["all", "trained"])
@given(batch=batches(), num_minibatches=st.integers(1, 3))
def test_denominators_count_rollouts_and_tokens(topology, denominator, batch, num_minibatches):
    cfg = PackConfig(num_minibatches=num_minibatches, denominator=denominator)
    minibatches = pack_batch(*batch, topology, cfg).minibatches
    counted = [r for r, a in pairs(batch) if denominator == "all" or a != 0]
    assert sum(m.num_rollouts for m in minibatches) == len(counted)
    assert sum(m.num_tokens for m in minibatches) == sum(r.num_completion_tokens for r in counted)


def contents(minibatch: Part) -> tuple:
    """All that does not say where a rollout is."""
    entries = [entry._replace(home=0, holder=0, slot=0) for entry in minibatch.entries]
    return entries, minibatch.num_rollouts, minibatch.num_tokens


@given(batch=batches(max_groups=12), num_minibatches=st.integers(1, 5), data=st.data())
@pytest.mark.parametrize("world_size", [2, 3, 7, 64])
def test_minibatches_are_the_same_wherever_their_prompts_are_at_home(
    world_size, batch, num_minibatches, data
):
    homes = data.draw(st.lists(st.integers(0, world_size - 1), min_size=12, max_size=12))
    by_rank: list[list[Part]] = [[] for _ in range(world_size)]
    everything = []
    for number, (group, advantages) in enumerate(zip(*batch, strict=True)):
        part = make_part(number, group, advantages, 0, homes[number], PackConfig())
        by_rank[homes[number]].append(part)
        everything.append(part)
    together = cut(by_rank, num_minibatches)
    assert list(map(contents, together)) == list(map(contents, cut([everything], num_minibatches)))
    assert [e for m in together for e in m.entries] == [e for p in everything for e in p.entries]


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 70))
@example(128, 4, 64)
@example(2, 2, 1)
def test_no_minibatch_is_lost_however_few_prompts_a_rank_has(
    num_prompts, num_minibatches, num_ranks
):
    num_prompts = max(num_prompts, num_minibatches)
    parts = [
        make_part(number, make_group(str(number), [make_rollout("r")]), [1.0], 0, 0, PackConfig())
        for number in range(num_prompts)
    ]
    minibatches = cut([parts[rank::num_ranks] for rank in range(num_ranks)], num_minibatches)
    sizes = [len(minibatch.entries) for minibatch in minibatches]
    assert len(sizes) == num_minibatches
    assert sum(sizes) == num_prompts
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0


@pytest.mark.parametrize("denominator", ["all", "trained"])
def test_a_truncated_rollout_is_masked_and_counts_where_all_do(denominator):
    """DAPO's overlong filter; terms for every rollout do not bring it back."""
    rollouts = [
        replace(make_rollout("r"), sample=i, finish_reason=reason)
        for i, reason in enumerate(("stop", "length", "stop"))
    ]
    group, cfg = make_group("p", rollouts), PackConfig(denominator=denominator)
    trained = {
        (masked, everything): make_part(
            *(0, group, [1.0, -1.0, 0.0], 0, 0, cfg),
            Selection(mask_truncated=masked, everything=everything),
        )
        for masked in (False, True)
        for everything in (False, True)
    }
    samples = {case: [e.sample for e in part.entries] for case, part in trained.items()}
    assert samples == {
        (False, False): [0, 1],
        (False, True): [0, 1, 2],
        (True, False): [0],
        (True, True): [0, 2],
    }
    for case, part in trained.items():
        assert part.num_rollouts == (3 if denominator == "all" else len(samples[case]))
        assert part.num_masked == case[0]


def test_groups_train_in_the_order_of_their_prompts_and_not_of_their_homes(topology):
    groups = [make_group(str(g), [make_rollout(str(g))]) for g in range(4)]
    cfg = PackConfig(num_minibatches=4)
    advantages = [[1.0 + g] for g in range(4)]
    batch = pack_batch(groups, advantages, topology, cfg, numbers=[6, 0, 3, 1])
    trained = [{float(a) for m in b.microbatches for a in m.advantages} for b in batch.minibatches]
    assert trained == [{2.0}, {4.0}, {3.0}, {1.0}]


def test_more_minibatches_than_prompts_are_refused():
    PackConfig(num_minibatches=4).check(4)
    with pytest.raises(UserError, match=r"pack.num_minibatches=4 is more than num_prompts_per_s"):
        PackConfig(num_minibatches=4).check(3)


def test_nothing_to_train_on_is_no_microbatch(topology):
    groups = [make_group("g", [make_rollout("a"), make_rollout("b")])]
    (minibatch,) = pack_batch(groups, [[0.0, 0.0]], topology, PackConfig()).minibatches
    assert minibatch.microbatches == ()
    assert (minibatch.num_rollouts, minibatch.num_trained_rollouts) == (2, 0)


def test_the_filler_feeds_one_token_and_scores_none():
    filler = filler_microbatch(SPEC, replay=True)
    assert filler.sequence_lengths == (1,)
    assert len(filler.token_ids) == len(filler.positions) == 1
    assert len(filler.rows) == len(filler.targets) == len(filler.advantages) == 0
    assert filler.routed_experts.tolist() == [[[-1, -1], [-1, -1]]]
    assert filler_microbatch(SPEC, replay=False).routed_experts is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_routes_stay_in_the_bytes_they_were_recorded_in(dtype):
    tokens = [tokens_of(make_rollout(name)) for name in "ab"]
    tokens = [replace(t, routed_experts=t.routed_experts.to(dtype)) for t in tokens]
    items = [Trained(tokens=t, advantage=1.0) for t in tokens]
    microbatch = pack_microbatch(items, SPEC, replay=True)
    assert microbatch.routed_experts.dtype == dtype
    expected = [row for t in tokens for row in t.routed_experts.tolist()]
    assert microbatch.routed_experts.tolist() == expected


@pytest.mark.parametrize("name", ["num_minibatches", "max_tokens_per_microbatch"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"pack.{name}=0 must be at least 1"):
        PackConfig(**{name: 0})


@given(batch=batches(), shares=st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=5, max_size=5))
def test_groups_bring_their_weight_to_the_loss_and_their_count_to_the_denominators(
    topology, batch, shares
):
    groups = [
        replace(group, weight=3 * share, count=share)
        for group, share in zip(batch[0], shares, strict=False)
    ]
    (minibatch,) = pack_batch(groups, batch[1], topology, PackConfig()).minibatches
    assert minibatch.num_rollouts == sum(g.count * len(g.rollouts) for g in groups)
    tokens = [(g.count, r.num_completion_tokens) for g in groups for r in g.rollouts]
    assert minibatch.num_tokens == sum(count * num_tokens for count, num_tokens in tokens)
    got = Counter(
        (float(m.weights[b]), int((m.sequence_ids == b).sum()))
        for m in minibatch.microbatches
        for b in range(m.num_sequences if len(m.rows) else 0)
    )
    expected = Counter(
        (g.weight, r.num_completion_tokens)
        for g, advantages in zip(groups, batch[1], strict=True)
        for r, advantage in zip(g.rollouts, advantages, strict=True)
        if advantage
    )
    assert got == expected
