"""Brings together what ranks know of a step's rollouts, and hands it to the files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from compass.distributed import Topology, raised_together
from compass.metrics import Span, Stopwatch
from compass.rl.advantage import Rewards
from compass.rl.config import RlConfig
from compass.rl.pack import Entry
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.update import Updated
from compass.rl.zero_variance.stages import ZeroVarianceStages
from compass.rollouts.record import Judged, StepRecord, Trained
from compass.rollouts.schema import FOLDER
from compass.rollouts.writer import RolloutFiles
from compass.text.tokenizer import Tokenizer
from compass.train.trainer import TokenPass
from compass.types import Microbatch, RolloutGroup, TokenScores


class Recorder:
    """What the recipe tells its rollouts to, once a step."""

    def __init__(
        self,
        files: RolloutFiles | None,
        stages: ZeroVarianceStages,
        topology: Topology,
        *,
        num_experts: int,
        group_size: int,
    ) -> None:
        """`files` is None where no rollouts are kept."""
        self._files = files
        self._stages = stages
        self._topology = topology
        self._num_experts = num_experts
        self._group_size = group_size
        self._cpu_seconds = time.process_time()

    def add(
        self,
        step: int,
        groups: Sequence[RolloutGroup],
        numbers: Sequence[int],
        rewards: Sequence[Rewards],
        advantages: Sequence[Sequence[float]],
        updates: Sequence[Updated],
        written: RankRollouts,
        stopwatch: Stopwatch,
    ) -> None:
        """Have every rank write what it wrote, with what homes and trainers know of it. Collective.

        Args:
            groups: those at home on this rank, with their prompts' `numbers`, shaped `rewards` and
                `advantages`.
            updates: of this rank.
            stopwatch: begun with the step.

        Raises:
            UserError: an earlier step could not be written, on any rank.
        """
        if self._files is None:
            return
        of_groups = [
            judged
            for group, number, of_group, advantage in zip(
                groups, numbers, rewards, advantages, strict=True
            )
            for judged in self._judged(group, number, of_group, advantage)
        ]
        ranks = range(self._topology.world_size)
        trained = list(trained_rollouts(updates))
        told = self._topology.all_to_all_object(
            [
                (
                    [judged for judged in of_groups if judged.rollout.holder == rank],
                    [of_one for holder, of_one in trained if holder == rank],
                )
                for rank in ranks
            ]
        )
        now = time.process_time()
        record = StepRecord(
            step=step,
            rank=self._topology.rank,
            world_size=self._topology.world_size,
            tokens=list(written),
            judged=[judged for of_rank, _ in told for judged in of_rank],
            trained={of_one.slot: of_one for _, of_rank in told for of_one in of_rank},
            spans=since_first(stopwatch.spans),
            cpu_seconds=now - self._cpu_seconds,
            num_experts=self._num_experts,
        )
        self._cpu_seconds = now
        with raised_together(self._topology):
            self._files.put(record)

    def drain(self) -> None:
        """Wait for the last step's file. Collective.

        Raises:
            UserError: it could not be written, on any rank.
        """
        with raised_together(self._topology):
            if self._files is not None:
                self._files.drain()

    def _judged(
        self,
        group: RolloutGroup,
        number: int,
        rewards: Rewards,
        advantages: Sequence[float],
    ) -> Iterator[Judged]:
        saved_by = self._stages.outcome(group, rewards).saved_by
        for rollout, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True):
            yield Judged(
                rollout=rollout,
                group=number,
                domain=group.prompt.domain,
                answer=group.prompt.answer,
                shaped_reward=reward,
                advantage=advantage,
                saved_by=saved_by,
                added=rollout.sample >= self._group_size,
            )


@contextmanager
def open_recorder(
    cfg: RlConfig,
    stages: ZeroVarianceStages,
    tokenizer: Tokenizer,
    topology: Topology,
    *,
    num_experts: int,
    last_step: int,
) -> Iterator[Recorder]:
    """A recorder whose files are whole when the block has ended. Collective.

    Args:
        last_step: what an earlier run wrote after it is deleted.

    Raises:
        UserError: they cannot be written.
    """
    files = None
    with raised_together(topology):
        if cfg.report.keep_steps:
            files = RolloutFiles(
                cfg.run_dir / FOLDER,
                tokenizer,
                keep_steps=cfg.report.keep_steps,
                last_step=last_step,
                is_main=topology.is_main,
            )
    recorder = Recorder(files, stages, topology, num_experts=num_experts, group_size=cfg.group_size)
    try:
        yield recorder
        recorder.drain()
    finally:
        if files is not None:
            files.close()


def trained_rollouts(updates: Sequence[Updated]) -> Iterator[tuple[int, Trained]]:
    """What this rank's updates saw of each rollout, with the rank that wrote it."""
    for number, updated in enumerate(updates):
        parts = zip(
            updated.scored.microbatches,
            updated.scored.minibatch.members,
            updated.old,
            updated.passes,
            strict=True,
        )
        for microbatch, members, old, seen in parts:
            yield from _of_microbatch(number, microbatch, members, old, seen)


def _of_microbatch(
    number: int,
    microbatch: Microbatch,
    members: Sequence[Entry],
    old: TokenScores,
    seen: TokenPass,
) -> Iterator[tuple[int, Trained]]:
    sizes = [entry.num_loss_tokens for entry in members]
    ends = np.cumsum(sizes, dtype=np.int64)[:-1]

    def cut(values_R: Tensor) -> list[np.ndarray]:
        return np.split(values_R.cpu().numpy(), ends)

    logprobs, entropies, advantages = map(
        cut, (old.logprobs.float(), old.entropy.float(), seen.advantages.float())
    )
    flips = None if seen.flips is None else cut(seen.flips)
    for i, entry in enumerate(members):
        yield (
            entry.holder,
            Trained(
                slot=entry.slot,
                minibatch=number,
                logprobs=logprobs[i],
                entropies=entropies[i],
                advantages=advantages[i],
                flips=None if flips is None else flips[i],
            ),
        )


def since_first(spans: Sequence[Span]) -> list[Span]:
    """Spans in seconds since the first of them began."""
    first = min((span.began for span in spans), default=0.0)
    return [Span(name, began - first, ended - first) for name, began, ended in spans]
