"""Rollouts: generate, score while others still decode, and bring each group together.

A group has a home rank, which decides whether it grows; its samples may be written anywhere. The
rank that wrote a sample has it scored and keeps its tokens; the home learns the score, as a
`Rollout`, while others still decode. Rewards that look at a whole group are asked by the home, each
time that all of it is scored: before it may grow, and after it has grown.

Shape legend: N tokens of prompt and completion, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import torch

from compass.distributed import Topology
from compass.generate.sequence import Request
from compass.metrics import Stopwatch
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.shares import Share, deal_first
from compass.rl.writer import RolloutWriter
from compass.rl.zero_variance.growth import Growth, PlanGrowth
from compass.rl.zero_variance.reshape import repetition
from compass.types import (
    Completion,
    Prompt,
    Rollout,
    RolloutGroup,
    RolloutTokens,
    SamplingParams,
    Score,
)

ShareOut = Callable[[Sequence[Prompt], int], Sequence[Share]]
"""Prompts and group size -> who writes what, the same on every rank."""

MAX_WAIT_SECONDS = 0.005
"""Longest wait before looking for scores from other ranks again: the store has no bell."""


def rollout(
    writer: RolloutWriter,
    prompts: Sequence[Prompt],
    *,
    share: ShareOut,
    group_size: int,
    seed: int,
    written: RankRollouts,
    stopwatch: Stopwatch,
    growth: PlanGrowth | None = None,
    in_waves: bool = False,
    max_completion_tokens: int | None = None,
) -> list[RolloutGroup]:
    """Scored groups of the prompts whose home is this rank, in the prompts' order. Collective; ends
    in an error on every rank when the logits of any token were not finite.

    A completion goes to the verifiers the moment it ends, and its score to the group's home. When
    the last of a group is scored, it may grow: more of that prompt join the batch that the home is
    still decoding. The stopwatch is charged `rollout` until this rank's last token,
    `reward_wait` for scoring its own completions after that, and `rank_wait` for the others'.

    Args:
        prompts: of all ranks together.
        share: who writes which samples of them.
        written: gets the tokens of what this rank writes.
        growth: plans which groups may grow; None: none.
        in_waves: let groups grow together, when all ranks have written all that was asked for and
            every verdict is known. What is decoded beside what, and with it the last bits of
            log-probabilities, then does not depend on when a verdict came.
        max_completion_tokens: takes the place of the sampling's.
    """
    generator, sampling = writer.generator, writer.sampling
    if max_completion_tokens is not None:
        sampling = replace(sampling, max_completion_tokens=max_completion_tokens)
    groups = GrowingGroups(
        writer,
        written,
        share(prompts, group_size),
        sampling,
        growth=Growth({}) if growth is None else growth(prompts),
        in_waves=in_waves,
    )
    written.begin_round()
    is_growing = True
    while is_growing:
        with stopwatch("rollout"):
            for completion in generator.generate([], seed=seed, source=groups):
                groups.add(completion)
        with stopwatch("reward_wait"):
            groups.finish_own()
        with stopwatch("rank_wait"):
            complete = groups.finish(writer.topology)
            is_growing = groups.begin_wave(writer.topology)
    generator.require_finite()
    return complete


class GrowingGroups:
    """Groups being written and scored: the generator's source of requests.

    Args:
        writer: of this rank. It takes shares that are meant for nobody while it writes fewer
            completions than its generator has seats.
        written: of this rank.
        shares: of all ranks.
        sampling: takes the place of the writer's.
    """

    def __init__(
        self,
        writer: RolloutWriter,
        written: RankRollouts,
        shares: Sequence[Share],
        sampling: SamplingParams,
        *,
        growth: Growth,
        in_waves: bool = False,
    ) -> None:
        self._pool = writer.pool
        self._mailbox = writer.mailbox
        self._written = written
        self._sampling = sampling
        self._growth = growth
        self._in_waves = in_waves
        self._may_grow = growth.is_possible and not in_waves
        """While others decode."""
        self._wave: list[Request] = []
        """What groups that grow together ask for, until the generator has asked for it."""
        rank = written.rank
        self._encoded = writer.encoded
        self._num_seats = writer.generator.config.max_num_seqs
        self._planned = [share for share in shares if share.writer == rank]
        """This rank's shares, until the generator has asked for them."""
        unplanned = (share for share in shares if share.writer is None)
        self._queue = sorted(unplanned, key=lambda share: share.priority)
        """The same on every rank; empty once all of it has been taken."""
        dealt, self._num_dealt = deal_first(
            [share.num_samples for share in self._queue],
            num_seats=self._num_seats,
            world_size=writer.mailbox.world_size,
        )
        self._planned += [self._queue[i] for i in dealt[rank]]
        self._queue_counter = writer.mailbox.counter()
        at_home = [share for share in shares if share.home == rank]
        self._shares = {share.prompt.id: share for share in [*self._planned, *at_home]}
        """One of each prompt that is written here or at home here."""
        self._num_unwritten = 0
        """Completions that were asked of the generator and have not ended."""
        self._unscored: dict[Hashable, tuple[Completion, int]] = {}
        """Completions of this rank at the verifiers, with their slots."""
        self._rollouts: dict[str, list[Rollout]] = {share.prompt.id: [] for share in at_home}
        self._asked = dict.fromkeys(self._rollouts, 0)
        for share in at_home:
            self._asked[share.prompt.id] += share.num_samples
        self._num_missing = sum(self._asked.values())
        """Rollouts of groups at home that are not scored yet, whoever writes them."""
        self._num_remote = self._num_missing - sum(
            share.num_samples for share in self._planned if share.home == rank
        )
        """Those of them that other ranks write, or may yet write."""
        self._num_looked_at = 0
        """Groups at home that rewards are looking at as a whole."""
        self._group_scores: dict[str, tuple[Score, ...]] = {}
        """What such rewards last made of a group, in the order of its samples."""
        self._is_idle = False
        """Whether there is nothing to do but wait for scores."""

    def add(self, completion: Completion) -> None:
        """Send a completion that has just ended to the verifiers."""
        key = (completion.prompt_id, completion.sample)
        prompt = self._shares[completion.prompt_id].prompt
        self._num_unwritten -= 1
        self._unscored[key] = completion, self._written.add(make_tokens(completion))
        self._pool.submit(
            key,
            prompt,
            completion.token_ids,
            finished=completion.finish_reason == "stop",
            thinking_open=self._encoded.opens_thinking(prompt),
        )

    def take(self) -> list[Request]:
        """This rank's shares at first; then, as there is room, shares from the queue, and further
        samples of groups that are fully scored and asked to grow. Scores for other ranks are on
        their way when it returns."""
        requests = [self._request(s, s.first_sample, s.num_samples) for s in self._planned]
        requests += self._wave
        self._planned, self._wave = [], []
        for rollout in self._newly_scored():
            requests += self._record(rollout)
        requests += self._newly_looked_at()
        self._num_unwritten += sum(request.num_samples for request in requests)
        while self._queue and self._num_unwritten < self._num_seats:
            requests += self._take_from_queue()
        return requests

    def _take_from_queue(self) -> list[Request]:
        """The first share that no rank has taken; none when all are."""
        place = self._num_dealt + self._queue_counter.draw()
        if place >= len(self._queue):
            self._queue = []
            return []
        share = self._queue[place]
        self._shares.setdefault(share.prompt.id, share)
        if share.home == self._written.rank:
            self._num_remote -= share.num_samples
        self._num_unwritten += share.num_samples
        return [self._request(share, share.first_sample, share.num_samples)]

    @property
    def is_open(self) -> bool:
        """Whether a group at home lacks a score that could make it grow."""
        return self._may_grow and self._num_missing + self._num_looked_at > 0

    def wait(self, seconds: float) -> None:
        """Wait for a score, at most `seconds`."""
        self._is_idle = True
        self._pool.wait(min(seconds, MAX_WAIT_SECONDS) if self._num_remote else seconds)

    def finish_own(self) -> None:
        """Wait until everything this rank wrote is scored, and each score sent home as it comes.
        Generation is over: no group grows any more."""
        self._may_grow = False
        while self._unscored:
            self._is_idle = True
            self._pool.wait(1.0)
            self.take()

    def finish(self, topology: Topology) -> list[RolloutGroup]:
        """The groups at home, after the last score of other ranks. Collective."""
        topology.barrier()  # every score has been posted
        while self._num_missing + self._num_looked_at > 0:
            if self._num_looked_at:
                self._pool.wait(MAX_WAIT_SECONDS)
            self._is_idle = True
            self.take()
        return [self._growth.weighed(self._group(prompt_id)) for prompt_id in self._rollouts]

    def begin_wave(self, topology: Topology) -> bool:
        """Let every group at home that is to grow do so, after `finish`; whether one did on any
        rank. False where groups have grown while others decoded. Collective."""
        if not self._in_waves:
            return False
        for prompt_id in self._rollouts:
            self._wave += self._grown(prompt_id)
        return topology.any(bool(self._wave))

    def _newly_scored(self) -> list[Rollout]:
        """Rollouts for groups at home; those for other homes are posted."""
        rank = self._written.rank
        by_home: dict[int, list[Rollout]] = {}
        for key, score in self._pool.poll():
            completion, slot = self._unscored.pop(key)
            self._written.verifier_seconds += score.seconds
            is_looked_at = self._pool.looks_at_groups(
                self._shares[completion.prompt_id].prompt.domain
            )
            rollout = make_rollout(completion, score, holder=rank, slot=slot, keep_ids=is_looked_at)
            by_home.setdefault(self._shares[rollout.prompt_id].home, []).append(rollout)
        rollouts = by_home.pop(rank, [])
        for home, of_home in by_home.items():
            self._mailbox.post(home, of_home)
        if self._num_remote:
            for letter in self._letters():
                self._num_remote -= len(letter)
                rollouts += letter
        return rollouts

    def _letters(self) -> list[list[Rollout]]:
        """Scores from other ranks. While this one decodes it looks seldom, and not at all where no
        group grows: then nothing is done with them before the end."""
        if self._is_idle:
            self._is_idle = False
            return self._mailbox.take()
        return self._mailbox.glance() if self._may_grow else []

    def _record(self, rollout: Rollout) -> list[Request]:
        """Take a rollout into its group; requests for more, if it was the last and the group is
        to grow. Where rewards look at the group as a whole, that comes after them."""
        of_prompt = self._rollouts[rollout.prompt_id]
        of_prompt.append(rollout)
        self._num_missing -= 1
        if len(of_prompt) < self._asked[rollout.prompt_id]:
            return []
        if self._pool.looks_at_groups(self._shares[rollout.prompt_id].prompt.domain):
            self._look_at(rollout.prompt_id)
            return []
        return self._grown(rollout.prompt_id) if self._may_grow else []

    def _look_at(self, prompt_id: str) -> None:
        """Submit a group that is scored one by one to the rewards that look at all of it."""
        rollouts = self._in_order(prompt_id)
        self._num_looked_at += 1
        self._pool.submit_group(
            prompt_id,
            self._shares[prompt_id].prompt,
            [r.completion_ids for r in rollouts],
            [r.score for r in rollouts],
            step=rollouts[0].policy_version,
        )

    def _newly_looked_at(self) -> list[Request]:
        """Take up what rewards made of whole groups; requests for more where one is to grow."""
        requests = []
        for key, scores in self._pool.poll_groups():
            prompt_id = str(key)
            before = sum(r.score.seconds for r in self._rollouts[prompt_id])
            self._written.verifier_seconds += sum(s.seconds for s in scores) - before
            self._num_looked_at -= 1
            self._group_scores[prompt_id] = scores
            requests += self._grown(prompt_id) if self._may_grow else []
        return requests

    def _grown(self, prompt_id: str) -> list[Request]:
        """Ask for what a fully scored group is to grow by."""
        asked = self._asked[prompt_id]
        further = self._growth.further(self._group(prompt_id))
        if not further:
            return []
        self._asked[prompt_id] += further
        self._num_missing += further
        return [self._request(self._shares[prompt_id], asked, further)]

    def _group(self, prompt_id: str) -> RolloutGroup:
        rollouts = self._in_order(prompt_id)
        if prompt_id in self._group_scores:
            scores = self._group_scores[prompt_id]
            rollouts = [replace(r, score=s) for r, s in zip(rollouts, scores, strict=True)]
        return RolloutGroup(prompt=self._shares[prompt_id].prompt, rollouts=tuple(rollouts))

    def _in_order(self, prompt_id: str) -> list[Rollout]:
        return sorted(self._rollouts[prompt_id], key=lambda rollout: rollout.sample)

    def _request(self, share: Share, first_sample: int, num_samples: int) -> Request:
        prompt = share.prompt
        return Request(
            prompt_id=prompt.id,
            prompt_token_ids=self._encoded.of(prompt),
            num_samples=num_samples,
            sampling=self._sampling,
            first_sample=first_sample,
            priority=share.priority,
        )


def make_tokens(completion: Completion) -> RolloutTokens:
    """Join prompt and completion into one sequence of N tokens."""
    num_prompt = len(completion.prompt_token_ids)
    token_ids = torch.tensor([*completion.prompt_token_ids, *completion.token_ids])
    rollout_logprobs = torch.zeros(len(token_ids))
    rollout_logprobs[num_prompt:] = completion.logprobs
    return RolloutTokens(
        token_ids=token_ids,
        loss_mask=torch.arange(len(token_ids)) >= num_prompt,
        rollout_logprobs=rollout_logprobs,
        routed_experts=completion.routed_experts,
    )


def make_rollout(
    completion: Completion, score: Score, *, holder: int, slot: int, keep_ids: bool = False
) -> Rollout:
    """What there is to say of a scored completion but for its tokens.

    `keep_ids`: and what was written, for rewards of its group's home.
    """
    return Rollout(
        prompt_id=completion.prompt_id,
        sample=completion.sample,
        num_prompt_tokens=len(completion.prompt_token_ids),
        num_completion_tokens=len(completion.token_ids),
        repetition=repetition(completion.token_ids),
        finish_reason=completion.finish_reason,
        policy_version=completion.policy_version,
        score=score,
        holder=holder,
        slot=slot,
        completion_ids=tuple(completion.token_ids) if keep_ids else (),
    )


def all_rollouts(groups: Iterable[RolloutGroup]) -> list[Rollout]:
    """Every rollout of every group."""
    return [r for group in groups for r in group.rollouts]
