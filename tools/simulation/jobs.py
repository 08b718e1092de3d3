"""Completions to write, what a simulated replica has to write them, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benches.cost_model import CostModel


class Job(NamedTuple):
    """One completion to write. Jobs of one group share a prompt."""

    group: int
    num_prompt_tokens: int
    num_tokens: int
    """Of the completion; at least 1."""
    priority: int = 0
    """Lower is admitted first; equals in order of the list."""
    turn_tokens: int = 0
    """Completion tokens of a turn; 0: once begun, it is finished."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What one generator has, as in `GeneratorConfig`."""

    max_num_seqs: int
    kv_tokens: int
    """Capacity of the KV cache."""
    max_tokens_per_step: int = 8192


@dataclass(kw_only=True)
class ReplicaRun:
    """What happened. Built by `run_replica`, `run_queue` and `run_waves`."""

    jobs: list[Job] = field(default_factory=list)
    """What was written, in the order in which the replica learnt of it."""
    starts: list[float] = field(default_factory=list)
    """When each job was first admitted, in seconds."""
    ends: list[float] = field(default_factory=list)
    """When each job had its last token."""
    num_written: int = 0
    """Completion tokens."""
    num_prompt_tokens_fed: int = 0
    """Tokens fed to fill the cache: prompts, and what preempted jobs computed again."""
    num_steps: int = 0
    num_preemptions: int = 0
    num_pauses: int = 0
    max_kv_tokens: int = 0
    occupancy: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, jobs that hold cache from then on), at every change."""

    @property
    def makespan(self) -> float:
        """Seconds until the last job ended."""
        return max(self.ends, default=0.0)


class LiveJob:
    """State of one job that has not ended."""

    __slots__ = (
        "finish_clock",
        "index",
        "is_paused",
        "job",
        "joined_clock",
        "need",
        "seat",
        "turn_tokens",
        "turns",
        "written",
    )

    def __init__(self, index: int, job: Job) -> None:
        self.index = index
        self.job = job
        self.turn_tokens = job.turn_tokens or job.num_tokens
        self.turns = 0
        """Turns that count for its place among those that wait."""
        self.is_paused = False
        """Waits, and kept its cache."""
        self.seat = 0
        """Number of its admission, 0 while it has no seat."""
        self.need = 0
        """Tokens still to be fed before it decodes."""
        self.written = 0
        """Tokens written when it last joined the decoders; later ones follow from the clock."""
        self.joined_clock = -1
        """Clock when it joined the decoders, -1 while it is not one of them."""
        self.finish_clock = 0

    def __lt__(self, other: LiveJob) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int]:
        return (self.turns, self.job.priority, self.index)


class LiveGroup:
    """Members of a group on this replica."""

    __slots__ = ("followers", "leader", "num_alive", "num_prompt_known")

    def __init__(self) -> None:
        self.num_alive = 0
        self.num_prompt_known = 0
        """Living members that have computed the prompt."""
        self.leader: LiveJob | None = None
        """The member that computes the prompt, or its last token, before any of its own."""
        self.followers: list[LiveJob] = []


def run_waves(jobs: Sequence[Job], replica: Replica, cost: CostModel) -> ReplicaRun:
    """Static batches: `max_num_seqs` jobs at a time, every row decoded until the longest of its
    wave ends, as a plain batched `generate` does. Kind to it: the cache is never short."""
    run = ReplicaRun(jobs=list(jobs), starts=[0.0] * len(jobs), ends=[0.0] * len(jobs))
    seconds = 0.0
    for first in range(0, len(jobs), replica.max_num_seqs):
        members = range(first, min(first + replica.max_num_seqs, len(jobs)))
        n = len(members)
        num_prompt = sum(jobs[i].num_prompt_tokens for i in members)
        longest = max(jobs[i].num_tokens for i in members)
        run.occupancy.append((seconds, n))
        for i in members:
            run.starts[i] = seconds
        prompt_seconds = cost.fixed_seconds(n) + cost.per_prompt_token_seconds * num_prompt
        for i in [*members, None]:
            k = longest - 1 if i is None else jobs[i].num_tokens - 1
            context = k * num_prompt + n * k * (k + 1) // 2
            end = seconds + prompt_seconds + k * cost.fixed_seconds(n)
            end += cost.per_context_token_seconds * context
            if i is not None:
                run.ends[i] = end
        seconds = end
        run.num_steps += longest
        run.num_prompt_tokens_fed += num_prompt
        run.num_written += sum(jobs[i].num_tokens for i in members)
    run.occupancy.append((seconds, 0))
    return run
