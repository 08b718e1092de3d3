"""Continuous batching, against a cache that remembers which tokens each slot saw."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.errors import UserError
from compass.generate.block_manager import BlockManager
from compass.generate.scheduler import Scheduler, Step
from compass.generate.sequence import Request, Sequence
from compass.types import SamplingParams
from tests.generate.prefix_cache import BLOCK_SIZE, STOP, PrefixCache, alone

MAX_SEQ_LEN = 40


def make_scheduler(
    num_blocks: int, max_num_seqs: int, max_tokens_per_step: int, num_turns: int = 1
) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE),
        max_num_seqs=max_num_seqs,
        max_tokens_per_step=max_tokens_per_step,
        max_seq_len=MAX_SEQ_LEN,
        seed=3,
        num_turns=num_turns,
    )


def request(name: str, prompt: list[int], num_samples: int = 1, **sampling) -> Request:
    params = SamplingParams(**({"max_completion_tokens": 8, "stop_token_ids": (STOP,)} | sampling))
    return Request(
        prompt_id=name, prompt_token_ids=prompt, num_samples=num_samples, sampling=params
    )


def serve(scheduler: Scheduler, max_steps: int = 20_000) -> tuple[list[Sequence], list[Step]]:
    """Run to the end, checking the limits of every step."""
    cache = PrefixCache(scheduler.blocks.num_blocks)
    finished, steps = [], []
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step.chunks, "a step that feeds nothing makes no progress"
        assert sum(chunk.num_tokens for chunk in step.chunks) <= scheduler.max_tokens_per_step
        assert len(scheduler.running) + scheduler.num_followers <= scheduler.max_num_seqs
        drawn = [sequence for sequence, _ in step.samples]
        assert len(set(map(id, drawn))) == len(drawn)
        for sequence in scheduler.update(step, cache.run(step), [-1.0] * len(drawn)):
            scheduler.release(sequence)
            finished.append(sequence)
        steps.append(step)
        assert len(steps) < max_steps, "does not end"
    return finished, steps


requests_strategy = st.lists(
    st.tuples(st.integers(1, 17), st.integers(1, 6), st.integers(1, 14), st.integers(0, 2)),
    min_size=0,
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(
    requests=requests_strategy, spare=st.integers(0, 20), seats=st.integers(1, 9), data=st.data()
)
def test_every_sample_ends_with_the_tokens_it_would_have_alone(requests, spare, seats, data):
    # The smallest pool in which the longest request fits alone, and a few blocks more.
    longest = max((p + n - 1 for p, _, n, _ in requests), default=1)
    num_blocks = -(-longest // BLOCK_SIZE) + spare
    scheduler = make_scheduler(num_blocks, seats, seats + data.draw(st.integers(0, 30)))
    expected = Counter()
    for i, (num_prompt, num_samples, num_new, priority) in enumerate(requests):
        params = SamplingParams(max_completion_tokens=num_new, stop_token_ids=(STOP,))
        scheduler.add(
            Request(
                prompt_id=f"p{i}",
                prompt_token_ids=[1 + (i + j) % 7 for j in range(num_prompt)],
                num_samples=num_samples,
                sampling=params,
                priority=priority,
            )
        )
        expected.update((f"p{i}", sample) for sample in range(num_samples))

    finished, _ = serve(scheduler)

    assert Counter((s.request.prompt_id, s.sample) for s in finished) == expected
    for sequence in finished:
        prompt = list(sequence.request.prompt_token_ids)
        assert sequence.token_ids == alone(prompt, sequence.key, sequence.max_tokens)
    assert scheduler.blocks.num_free == num_blocks
    assert scheduler.num_followers == 0


def test_a_group_computes_its_prompt_once() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=16, max_tokens_per_step=16)
    scheduler.add(request("long", list(range(1, 24)), num_samples=8))
    finished, steps = serve(scheduler)
    assert len(finished) == 8
    assert [step.chunks[0].num_tokens for step in steps[:2]] == [16, 7]
    # All eight first tokens are drawn in the step that completes the prompt, from one row.
    assert [chunk for _, chunk in steps[1].samples] == [0] * 8
    fed = sum(chunk.num_tokens for step in steps for chunk in step.chunks)
    assert fed == 23 + sum(len(s.token_ids) - 24 for s in finished)
    assert scheduler.num_preemptions == 0


def test_requests_for_one_prompt_compute_it_once() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=16, max_tokens_per_step=64)
    prompt = list(range(1, 24))
    for sample in range(4):
        limit = SamplingParams(max_completion_tokens=3 + sample)
        scheduler.add(
            Request(
                prompt_id="p",
                prompt_token_ids=prompt,
                num_samples=1,
                first_sample=sample,
                sampling=limit,
            )
        )
    finished, steps = serve(scheduler)
    assert sorted((s.sample, len(s.logprobs)) for s in finished) == [(0, 3), (1, 4), (2, 5), (3, 6)]
    fed = sum(chunk.num_tokens for step in steps for chunk in step.chunks)
    assert fed == 23 + sum(len(s.logprobs) - 1 for s in finished)
    # When the last of them has gone, nothing of the prompt is left.
    assert scheduler.blocks.num_free == 100
    scheduler.add(request("p", prompt))
    assert [chunk.num_tokens for chunk in scheduler.schedule().chunks] == [23]


def test_a_sample_admitted_late_computes_only_the_tail_of_a_living_siblings_prompt() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=2, max_tokens_per_step=64)
    scheduler.add(request("p", list(range(1, 24)), num_samples=3))
    step = scheduler.schedule()
    assert len(step.samples) == 2
    # The first sample stops at once and frees a seat, while its sibling lives on.
    for sequence in scheduler.update(step, [STOP, 1], [0.0, 0.0]):
        scheduler.release(sequence)
    step = scheduler.schedule()
    assert [(start, num_tokens) for _, start, num_tokens in step.chunks] == [(23, 1), (20, 3)]


def test_a_sample_admitted_after_its_siblings_ended_computes_the_prompt_itself() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=2, max_tokens_per_step=64)
    scheduler.add(request("p", list(range(1, 24)), num_samples=3, stop_token_ids=()))
    _, steps = serve(scheduler)
    assert [c.num_tokens for s in steps for c in s.chunks if c.num_tokens > 1] == [23, 23]


def test_a_long_prompt_does_not_stall_decodes_behind_it() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=4, max_tokens_per_step=4)
    scheduler.add(request("short", [1, 2], num_samples=3, stop_token_ids=()))
    scheduler.add(request("long", [1] * 30, stop_token_ids=()))
    _, steps = serve(scheduler)
    # Two forks of the short prompt run behind the long one and decode in every step.
    assert [c.num_tokens for c in steps[0].chunks] == [2, 2]
    for step in steps[1:8]:
        names = Counter(c.sequence.request.prompt_id for c in step.chunks)
        assert names == {"short": 3, "long": 1}
        assert [c.num_tokens for c in step.chunks] == [1] * 4


def test_lower_priority_values_are_admitted_first_and_equals_in_order() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=1, max_tokens_per_step=64)
    for name, priority in [("late", 5), ("first", 0), ("second", 0), ("urgent", -1)]:
        params = SamplingParams(max_completion_tokens=1)
        scheduler.add(
            Request(
                prompt_id=name,
                prompt_token_ids=[1, 2],
                num_samples=1,
                sampling=params,
                priority=priority,
            )
        )
    finished, _ = serve(scheduler)
    names = [s.request.prompt_id for s in finished]
    assert names == ["urgent", "first", "second", "late"]


def test_the_newest_sequence_is_preempted_and_nothing_it_wrote_is_lost() -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=4, max_tokens_per_step=64)
    for token, name in enumerate(("old", "new"), start=1):
        scheduler.add(request(name, [token] * 7, stop_token_ids=(), max_completion_tokens=14))
    finished, _ = serve(scheduler)
    assert scheduler.num_preemptions > 0
    assert [s.request.prompt_id for s in finished] == ["old", "new"]
    assert all(len(s.token_ids) == 21 for s in finished)


def test_admission_leaves_running_sequences_a_block_to_grow_into() -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=4, max_tokens_per_step=64)
    scheduler.add(request("old", [1] * 7, stop_token_ids=()))  # 2 blocks, soon 4
    scheduler.add(request("new", [2] * 14, stop_token_ids=()))  # 4 blocks, free at first
    _, steps = serve(scheduler)
    assert len(steps[0].chunks) == 1
    assert scheduler.num_preemptions == 0


@pytest.mark.parametrize(
    ("prompt", "num_new", "says"),
    [
        ([], 4, "has no tokens"),
        ([1] * MAX_SEQ_LEN, 4, r"'bad' has 40 tokens, but the context is 40"),
        ([1] * 9, 20, r"'bad' may need 28 tokens .* \(7 blocks of 4\).* has 6 blocks; raise gen"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(prompt, num_new, says) -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=4, max_tokens_per_step=64)
    with pytest.raises(UserError, match=says):
        scheduler.add(request("bad", prompt, max_completion_tokens=num_new))
    assert not scheduler.has_work


def test_a_request_that_exactly_fills_the_cache_is_served() -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=4, max_tokens_per_step=64)
    # 24 slots: 25 tokens, of which the last is never fed.
    scheduler.add(request("p", [1] * 9, stop_token_ids=(), max_completion_tokens=16))
    finished, _ = serve(scheduler)
    assert len(finished[0].token_ids) == 25


def test_the_context_limit_ends_a_completion() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=4, max_tokens_per_step=64)
    scheduler.add(request("p", [1] * 30, stop_token_ids=(), max_completion_tokens=500))
    finished, _ = serve(scheduler)
    assert len(finished[0].token_ids) == MAX_SEQ_LEN
    assert finished[0].finish_reason == "length"


def test_completions_take_turns_and_keep_their_blocks() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=1, max_tokens_per_step=64, num_turns=2)
    for i in range(3):
        scheduler.add(request(f"{i}", [i + 1] * 6, stop_token_ids=(), max_completion_tokens=8))
    finished, steps = serve(scheduler)
    seats = [step.chunks[0].sequence.request.prompt_id for step in steps]
    # After its first turn the last one goes on: nobody has had fewer.
    assert "".join(seats) == "000011112222" + "222200001111"
    assert [s.request.prompt_id for s in finished] == ["2", "0", "1"]
    # Nothing is computed twice: a prompt and then single tokens each.
    fed = sum(chunk.num_tokens for step in steps for chunk in step.chunks)
    assert fed == 3 * (6 + 7)
    assert scheduler.num_preemptions == 0


def test_nobody_makes_way_while_there_are_seats_for_all() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=2, max_tokens_per_step=64, num_turns=8)
    for i in range(2):
        scheduler.add(request(f"{i}", [i + 1] * 6, stop_token_ids=()))
    _, steps = serve(scheduler)
    assert all(len(step.chunks) == 2 for step in steps)


def test_when_half_of_the_blocks_are_used_whoever_has_begun_finishes() -> None:
    scheduler = make_scheduler(num_blocks=5, max_num_seqs=1, max_tokens_per_step=64, num_turns=8)
    for i in range(3):
        scheduler.add(request(f"{i}", [i + 1] * 6, stop_token_ids=()))
    _, steps = serve(scheduler)
    seats = [step.chunks[0].sequence.request.prompt_id for step in steps]
    # Two blocks are held after the prompt and first token, and the guest's two are not to be had.
    assert "".join(seats) == "0" * 8 + "1" * 8 + "2" * 8
