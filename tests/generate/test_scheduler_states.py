"""Random histories of live requests, priorities and preemptions over a pool that is too small.

Every request comes back exactly once, with the tokens it would have alone, and after every step
the blocks add up. At least 10,000 scheduler steps are taken, and counted.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from compass.errors import UserError
from compass.generate.block_manager import BlockManager
from compass.generate.scheduler import Scheduler, Step
from compass.generate.sequence import Request, Sequence
from compass.types import SamplingParams
from tests.generate.prefix_cache import BLOCK_SIZE, STOP, PrefixCache, alone

MIN_STEPS = 10_000
MAX_PROMPT = 4 * BLOCK_SIZE + 1
MAX_COMPLETION = 24
MAX_STEPS_TO_DRAIN = 5_000
"""Far above what any history needs: more means that somebody waits for ever."""
EDGES = [n * BLOCK_SIZE + offset for n in range(1, 4) for offset in (-1, 0, 1)]
"""Prompt lengths just before, on and behind a block's end."""


class SchedulerHistory(RuleBasedStateMachine):
    """The model is the set of (prompt, sample) that were asked for and have not come back.

    `tally` counts what happened over all histories.
    """

    def __init__(self, tally: Counter[str]) -> None:
        super().__init__()
        self.tally = tally
        self.outstanding: set[tuple[str, int]] = set()
        self.requests: list[Request] = []

    @initialize(
        spare=st.sampled_from([0, 0, 1, 2, 5, 40]),
        seats=st.integers(1, 9),
        extra_tokens=st.sampled_from([0, 1, 5, 30]),
        num_turns=st.sampled_from([1, 1, 2, 5, 24]),
    )
    def start(self, spare: int, seats: int, extra_tokens: int, num_turns: int) -> None:
        # The smallest pool in which the longest possible request fits alone, and a little more.
        num_blocks = -(-(MAX_PROMPT + MAX_COMPLETION - 1) // BLOCK_SIZE) + spare
        self.scheduler = Scheduler(
            BlockManager(num_blocks, BLOCK_SIZE),
            max_num_seqs=seats,
            max_tokens_per_step=seats + extra_tokens,
            max_seq_len=MAX_PROMPT + MAX_COMPLETION,
            seed=3,
            num_turns=num_turns,
        )
        self.cache = PrefixCache(num_blocks)

    @precondition(lambda self: len(self.outstanding) < 40)
    @rule(
        num_prompt_tokens=st.integers(1, MAX_PROMPT) | st.sampled_from(EDGES),
        num_samples=st.integers(1, 8),
        num_new=st.integers(1, MAX_COMPLETION),
        priority=st.integers(-2, 2),
        stops=st.booleans(),
    )
    def add(
        self, num_prompt_tokens: int, num_samples: int, num_new: int, priority: int, stops: bool
    ) -> None:
        """A request comes while others are being written."""
        i = len(self.requests)
        self._add(
            Request(
                prompt_id=f"p{i}",
                prompt_token_ids=[1 + (i + j) % 7 for j in range(num_prompt_tokens)],
                num_samples=num_samples,
                sampling=SamplingParams(
                    max_completion_tokens=num_new, stop_token_ids=(STOP,) if stops else ()
                ),
                priority=priority,
            )
        )

    @precondition(lambda self: self.requests and len(self.outstanding) < 40)
    @rule(data=st.data(), num_samples=st.integers(1, 8))
    def extend(self, data: st.DataObject, num_samples: int) -> None:
        """A group that was asked for earlier asks for more samples of the same prompt."""
        old = data.draw(st.sampled_from(self.requests))
        first = max(
            r.first_sample + r.num_samples for r in self.requests if r.prompt_id == old.prompt_id
        )
        self._add(
            Request(
                prompt_id=old.prompt_id,
                prompt_token_ids=old.prompt_token_ids,
                num_samples=num_samples,
                first_sample=first,
                sampling=old.sampling,
                priority=old.priority - 1,
            )
        )

    def _add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.requests.append(request)
        for sample in range(request.first_sample, request.first_sample + request.num_samples):
            self.outstanding.add((request.prompt_id, sample))

    @rule()
    def add_what_can_never_be_served(self) -> None:
        """It is refused, and leaves no trace."""
        waiting = list(self.scheduler.waiting)
        sampling = SamplingParams(max_completion_tokens=1)
        too_long = [1] * (MAX_PROMPT + MAX_COMPLETION)
        with pytest.raises(UserError, match="shorten the prompt"):
            self.scheduler.add(
                Request(
                    prompt_id="bad", prompt_token_ids=too_long, num_samples=2, sampling=sampling
                )
            )
        assert self.scheduler.waiting == waiting

    @precondition(lambda self: self.scheduler.has_work)
    @rule(count=st.integers(1, 25))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.scheduler.has_work:
                self._step()

    def _step(self) -> None:
        """What `Generator` does between two questions to its source."""
        scheduler = self.scheduler
        preemptions = scheduler.num_preemptions
        step = scheduler.schedule()
        self.tally["preemptions"] += scheduler.num_preemptions - preemptions
        check_step(scheduler, step)
        token_ids = self.cache.run(step)
        check_blocks(scheduler)
        self.tally["steps"] += 1
        self.tally["pauses"] += scheduler.num_paused
        self.tally["shared blocks"] += sum(n > 1 for n in scheduler.blocks.ref_counts)
        for sequence in scheduler.update(step, token_ids, [-1.0] * len(token_ids)):
            scheduler.release(sequence)
            self._settle(sequence)
        check_blocks(scheduler)

    def _settle(self, sequence: Sequence) -> None:
        self.tally["completions"] += 1
        request = sequence.request
        self.outstanding.remove((request.prompt_id, sequence.sample))  # KeyError: came twice
        prompt = list(request.prompt_token_ids)
        stop = STOP if request.sampling.stop_token_ids else None
        expected = alone(prompt, sequence.key, sequence.max_tokens, stop)
        assert sequence.token_ids == expected
        assert sequence.finish_reason == ("stop" if expected[-1] == stop else "length")

    @invariant()
    def everything_asked_for_is_known(self) -> None:
        """Waiting, following or running, each exactly once."""
        if not hasattr(self, "scheduler"):
            return
        groups = {id(s.group): s.group for s in self.scheduler.waiting + self.scheduler.running}
        followers = [s for group in groups.values() for s in group.followers]
        assert len(followers) == self.scheduler.num_followers
        known = Counter(
            (s.request.prompt_id, s.sample)
            for s in self.scheduler.waiting + self.scheduler.running + followers
        )
        assert known == Counter(self.outstanding)

    def teardown(self) -> None:
        """The source closes: all that was asked for comes back, and every block is free."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(MAX_STEPS_TO_DRAIN):
            if not self.scheduler.has_work:
                break
            self._step()
        assert not self.outstanding
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks


def check_step(scheduler: Scheduler, step: Step) -> None:
    """Progress within the limits, and nothing is written where another reads."""
    assert step.chunks, "a step that feeds nothing makes no progress"
    assert sum(chunk.num_tokens for chunk in step.chunks) <= scheduler.max_tokens_per_step
    assert len(scheduler.running) + scheduler.num_followers <= scheduler.max_num_seqs
    fed = [id(chunk.sequence) for chunk in step.chunks]
    drawn = [id(sample.sequence) for sample in step.samples]
    assert len(set(fed)) == len(fed), "fed twice"
    assert len(set(drawn)) == len(drawn), "sampled twice"
    assert {*fed, *drawn} == {id(s) for s in scheduler.running}, "stalled behind a prompt"
    assert all(chunk.num_tokens > 0 for chunk in step.chunks)
    written: set[int] = {copy.target for copy in step.copies}
    assert len(written) == len(step.copies)
    for i, (sequence, start, num_tokens) in enumerate(step.chunks):
        assert start == sequence.num_computed_tokens, "a gap in the cache, or work done twice"
        # Followers forked in this very step share blocks that their leader fills in it.
        num_forked = sum(s.chunk == i for s in step.samples if s.sequence is not sequence)
        last = (start + num_tokens - 1) // BLOCK_SIZE
        for block in sequence.block_table[start // BLOCK_SIZE : last + 1]:
            assert block not in written, "written by two"
            written.add(block)
            assert scheduler.blocks.ref_counts[block] <= 1 + num_forked, "written while shared"


def check_blocks(scheduler: Scheduler) -> None:
    """The free list and the tables account for every block, and only full prompts are shared."""
    blocks = scheduler.blocks
    owners: dict[int, list[tuple[Sequence, int]]] = {}
    paused = [s for s in scheduler.waiting if s.is_paused]
    assert len(paused) == scheduler.num_paused
    for sequence in scheduler.running + paused:
        assert len(set(sequence.block_table)) == len(sequence.block_table)
        assert len(sequence.block_table) <= blocks.num_blocks_for(len(sequence.token_ids))
        for place, block in enumerate(sequence.block_table):
            owners.setdefault(block, []).append((sequence, place))
    assert blocks.ref_counts == [len(owners.get(block, ())) for block in range(blocks.num_blocks)]
    free = blocks._free
    assert sorted([*free, *owners]) == list(range(blocks.num_blocks)), "lost, or free while owned"
    for shared in owners.values():
        for (one, place), (other, its_place) in pairwise(shared):
            assert one.group is other.group, "shared by two groups"
            assert place == its_place
            assert (place + 1) * BLOCK_SIZE <= one.num_prompt_tokens, "not a full prompt block"
    for sequence in scheduler.waiting:
        assert sequence.num_computed_tokens == (
            len(sequence.token_ids) - 1 if sequence.is_paused else 0
        )


def test_no_request_is_lost_or_doubled_over_ten_thousand_random_steps() -> None:
    tally: Counter[str] = Counter()
    run_state_machine_as_test(
        lambda: SchedulerHistory(tally),
        settings=settings(max_examples=200, stateful_step_count=25, deadline=None),
    )
    assert tally["steps"] >= MIN_STEPS
    # The histories were hard ones: blocks did run out, seats changed, and prompts were shared.
    assert tally["preemptions"] > MIN_STEPS / 100
    assert tally["pauses"] > MIN_STEPS / 10
    assert tally["shared blocks"] > MIN_STEPS / 10
    assert tally["completions"] > MIN_STEPS / 10
