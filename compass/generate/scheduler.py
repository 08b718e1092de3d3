"""Which tokens are fed in the next step: continuous batching over a block pool, in pure Python.

Every step feeds one token of each decoding sequence and fills the rest of the token budget with
chunks of prompts. A group is all that is to be written for one prompt, whichever requests ask for
it, and its prompt is computed once: its first sample (the leader) computes it, and the others
(followers) fork from the leader in the step that completes it, all sampling their first token from
the same row of logits. When blocks run out, the newest sequence gives up
its own, waits, and computes its tokens again later; the oldest always advances, so every request
ends.

Completions take turns when there are more than seats: after each turn one gives its seat to a
waiting one that has had fewer, and keeps its blocks. Which completions will be long nobody knows;
this way none of the long ones is only begun when the others are done (docs/performance.md has what
it gains). When blocks become scarce nobody is asked to pause, and those that pause lose theirs
before any that run.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple

from compass.errors import UserError
from compass.generate.block_manager import BlockManager, Copy
from compass.generate.sequence import Group, Request, Sequence, max_total_tokens


class Chunk(NamedTuple):
    """Feed `sequence.token_ids[start : start + num_tokens]`; a decode is a chunk of one."""

    sequence: Sequence
    start: int
    num_tokens: int


class Sample(NamedTuple):
    """Append one token to `sequence`, drawn from the logits of the last token of a chunk."""

    sequence: Sequence
    chunk: int


@dataclass(kw_only=True)
class Step:
    """One forward pass. Built by `Scheduler.schedule`."""

    chunks: list[Chunk] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    """Block copies to make *after* the forward pass: the blocks of a leader, for followers."""


class Scheduler:
    """Continuous batching of requests over the blocks of one KV cache."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_tokens_per_step: int,
        max_seq_len: int,
        seed: int,
        num_turns: int,
    ) -> None:
        """`num_turns`: turns of the longest completion that a request allows; 1 lets everyone
        finish who has begun."""
        assert max_tokens_per_step >= max_num_seqs, "every decoding sequence must advance"
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_tokens_per_step = max_tokens_per_step
        self.max_seq_len = max_seq_len
        self.seed = seed
        self.num_turns = num_turns
        self.waiting: list[Sequence] = []
        """A heap in order of (turns, priority, arrival, sample); see `Sequence.is_paused`."""
        self.running: list[Sequence] = []
        """Holders of blocks, oldest admission first."""
        self.num_followers = 0
        self.num_paused = 0
        self.num_preemptions = 0
        self._num_requests = 0
        self._groups: dict[tuple[int, ...], Group] = {}
        """By prompt, as long as a member lives."""
        self._turn_over: list[Sequence] = []
        """Those whose turn ended in the last step."""

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue every sample of `request`.

        Raises:
            UserError: the prompt leaves no room in the context, or one sample alone would not
                fit in the KV cache.
        """
        check_fits(
            request,
            num_blocks=self.blocks.num_blocks,
            block_size=self.blocks.block_size,
            max_seq_len=self.max_seq_len,
        )
        prompt = tuple(request.prompt_token_ids)
        group = self._groups.setdefault(prompt, Group(prompt))
        group.num_alive += request.num_samples
        for sample in range(request.first_sample, request.first_sample + request.num_samples):
            sequence = Sequence(
                request,
                sample,
                group,
                arrival=self._num_requests,
                seed=self.seed,
                max_seq_len=self.max_seq_len,
                num_turns=self.num_turns,
            )
            heapq.heappush(self.waiting, sequence)
        self._num_requests += 1

    def schedule(self) -> Step:
        """Choose the next step's chunks and give their tokens blocks."""
        step = Step()
        self._change_seats()
        budget = self._schedule_running(step)
        self._admit(step, budget)
        self._fork_followers(step)
        return step

    def update(
        self, step: Step, token_ids: SequenceOf[int], logprobs: SequenceOf[float]
    ) -> list[Sequence]:
        """Account for a step that ran: `token_ids[i]` was drawn for `step.samples[i]`.

        Returns the sequences that ended. They hold their blocks until `release`.
        """
        for sequence, start, num_tokens in step.chunks:
            sequence.num_computed_tokens = start + num_tokens
        finished = []
        turn_over = []
        for (sequence, _), token_id, logprob in zip(step.samples, token_ids, logprobs, strict=True):
            if sequence.is_fresh:  # a follower was fed nothing itself
                sequence.num_computed_tokens = sequence.num_prompt_tokens
            if sequence.append(token_id, logprob):
                finished.append(sequence)
            elif sequence.ended_turn:
                turn_over.append(sequence)
        self._turn_over = turn_over
        if finished:
            self.running = [s for s in self.running if not s.finish_reason]
        return finished

    def release(self, sequence: Sequence) -> None:
        """Give up the blocks of a sequence that ended."""
        group = sequence.group
        group.running.remove(sequence)
        self.blocks.free(sequence.block_table)
        group.num_alive -= 1
        if not group.num_alive:
            del self._groups[group.prompt_token_ids]

    def _change_seats(self) -> None:
        """Those whose turn is over make way, each for one that waits and has had fewer turns.

        Not while there are seats for all, nor when less than half of the blocks is free: those that
        run would want soon what those that pause keep.
        """
        guests: list[Sequence] = []
        num_free = self.blocks.num_free - self.blocks.num_blocks // 2
        if len(self.running) + self.num_followers < self.max_num_seqs:
            return
        for sequence in self._turn_over:
            if not self.waiting:
                break
            sequence.count_turns()
            guest = self.waiting[0]
            num_free -= self._num_missing_blocks(guest)
            if num_free < 0 or guest.order[0] >= sequence.order[0]:
                break
            guests.append(heapq.heappop(self.waiting))
            self.running.remove(sequence)
            heapq.heappush(self.waiting, sequence)
            self.num_paused += 1
        for guest in guests:
            heapq.heappush(self.waiting, guest)

    def _schedule_running(self, step: Step) -> int:
        """Chunks of the running sequences, oldest first; returns what is left of the budget."""
        budget = self.max_tokens_per_step
        block_size, running = self.blocks.block_size, self.running
        i = 0
        while i < len(running):
            sequence = running[i]
            start = sequence.num_computed_tokens
            # One token is kept back for each younger sequence, so that a long prompt cannot
            # stall the decodes behind it.
            room = budget - (len(running) - i - 1)
            num_tokens = min(len(sequence.token_ids) - start, room)
            if start + num_tokens > len(sequence.block_table) * block_size and not (
                self._make_room(sequence, start + num_tokens)
            ):
                break
            self._feed(step, sequence, start, num_tokens)
            budget -= num_tokens
            i += 1
        return budget

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Preempt those that pause, then the newest, until `sequence` has blocks; False if it was
        itself the newest."""
        while not self.blocks.extend(sequence.block_table, num_tokens):
            if self.num_paused:
                self._preempt_paused()
                continue
            victim = self.running.pop()
            assert self.running or victim is not sequence, "check_fits lets one sequence fit"
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._take_back_blocks(victim)
        victim.count_turns()
        heapq.heappush(self.waiting, victim)

    def _preempt_paused(self) -> None:
        """Take the blocks of the one that pauses and has its next turn last."""
        self._take_back_blocks(max(s for s in self.waiting if s.is_paused))
        self.num_paused -= 1

    def _take_back_blocks(self, victim: Sequence) -> None:
        self.num_preemptions += 1
        # Followers keep their seats: one of the group's waiting members will lead them again.
        victim.group.running.remove(victim)
        self.blocks.free(victim.block_table)
        victim.num_computed_tokens = 0

    def _feed(self, step: Step, sequence: Sequence, start: int, num_tokens: int) -> None:
        step.chunks.append(Chunk(sequence, start, num_tokens))
        if start + num_tokens == len(sequence.token_ids):
            step.samples.append(Sample(sequence, len(step.chunks) - 1))

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences in while there are seats, tokens and blocks."""
        while (
            self.waiting
            and budget > 0
            and len(self.running) + self.num_followers < self.max_num_seqs
        ):
            sequence = self.waiting[0]
            group = sequence.group
            if sequence.is_fresh and group.leader is not None:
                heapq.heappop(self.waiting)
                group.followers.append(sequence)
                self.num_followers += 1
                continue
            if not self._take_blocks(sequence):
                if not self.num_paused:
                    return
                # Those that pause have theirs already.
                sequence = min(s for s in self.waiting if s.is_paused)
                if not self._take_blocks(sequence):
                    if self.running:
                        return
                    self._preempt_paused()
                    continue
            self._seat(sequence)
            start = sequence.num_computed_tokens
            num_tokens = min(len(sequence.token_ids) - start, budget)
            self._feed(step, sequence, start, num_tokens)
            budget -= num_tokens

    def _seat(self, sequence: Sequence) -> None:
        """From waiting, not always from its head, to running."""
        if sequence is self.waiting[0]:
            heapq.heappop(self.waiting)
        else:
            self.waiting.remove(sequence)
            heapq.heapify(self.waiting)
        self.running.append(sequence)

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Blocks for all its tokens: those it kept, or the prompt's shared with a living sibling
        where possible, and new ones for the rest."""
        missing = self._num_missing_blocks(sequence)
        # One block is kept back for each running sequence: admission should not cause preemption.
        if missing + len(self.running) > self.blocks.num_free:
            return False
        if sequence.is_paused:
            self.num_paused -= 1
        else:
            table = self._shared_prompt(sequence)
            sequence.num_computed_tokens = len(table) * self.blocks.block_size
            sequence.block_table = table
            sequence.group.running.append(sequence)
        self.blocks.extend(sequence.block_table, len(sequence.token_ids))
        return True

    def _num_missing_blocks(self, sequence: Sequence) -> int:
        """Free blocks that `_take_blocks` needs."""
        if sequence.is_paused:
            num_held = len(sequence.block_table)
        else:
            num_held = self._num_shared_tokens(sequence) // self.blocks.block_size
        return self.blocks.num_blocks_for(len(sequence.token_ids)) - num_held

    def _num_shared_tokens(self, sequence: Sequence) -> int:
        """Prompt tokens that some sibling has computed; the last one is always left to compute,
        since its logits are wanted."""
        computed = max((s.num_computed_tokens for s in sequence.group.running), default=0)
        return min(computed, sequence.num_prompt_tokens - 1)

    def _shared_prompt(self, sequence: Sequence) -> list[int]:
        """Full prompt blocks of the sibling that has computed most."""
        siblings = sequence.group.running
        if not siblings:
            return []
        sibling = max(siblings, key=lambda s: s.num_computed_tokens)
        return self.blocks.share(sibling.block_table, self._num_shared_tokens(sequence))

    def _fork_followers(self, step: Step) -> None:
        """Followers whose leader completes the prompt in this step become running."""
        if not self.num_followers:
            return
        for leader, chunk in list(step.samples):
            group = leader.group
            if not group.followers or group.leader is not leader:
                continue
            self.num_followers -= len(group.followers)
            for follower in group.followers:
                self._fork(step, leader, follower, chunk)
            group.followers.clear()

    def _fork(self, step: Step, leader: Sequence, follower: Sequence, chunk: int) -> None:
        blocks = self.blocks
        fork = None
        if blocks.num_free > len(self.running):
            fork = blocks.fork(leader.block_table, leader.num_prompt_tokens)
        if fork is None:
            heapq.heappush(self.waiting, follower)
            return
        follower.block_table = fork.table
        if fork.copy is not None:
            step.copies.append(fork.copy)
        self.running.append(follower)
        follower.group.running.append(follower)
        step.samples.append(Sample(follower, chunk))


def check_fits(request: Request, *, num_blocks: int, block_size: int, max_seq_len: int) -> None:
    """Refuse a request that could never be served, before anything runs. Sizes are the cache's.

    Raises:
        UserError: naming the request, what it needs and what to change.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise UserError(f"prompt {request.prompt_id!r} has no tokens; remove it or give it text")
    if num_prompt_tokens >= max_seq_len:
        raise UserError(
            f"prompt {request.prompt_id!r} has {num_prompt_tokens} tokens, but the context is "
            f"{max_seq_len} tokens, prompt and completion together; shorten the prompt"
        )
    # The last token is sampled but never fed.
    num_tokens = max_total_tokens(request, max_seq_len) - 1
    needed = -(-num_tokens // block_size)
    if needed > num_blocks:
        raise UserError(
            f"one sample of prompt {request.prompt_id!r} may need {num_tokens} tokens of KV cache "
            f"({needed} blocks of {block_size}), but the cache has {num_blocks} "
            f"blocks; raise generator.num_blocks or generator.kv_cache_gb, or lower "
            f"max_completion_tokens"
        )
