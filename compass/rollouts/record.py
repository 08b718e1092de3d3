"""What a rank knows of the rollouts it wrote in a step, once the step is over.

Shape legend: n completion tokens of one rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from numpy.typing import NDArray

from compass.metrics import Span
from compass.types import Rollout, RolloutTokens


class Judged(NamedTuple):
    """A rollout as its group's home knows it."""

    rollout: Rollout
    group: int
    """Number of its prompt among those of the step."""
    domain: str
    answer: str | None
    """What its prompt expects."""
    shaped_reward: float | None
    """After stage 3; None where the verifier failed."""
    advantage: float
    saved_by: str
    """`compass.rl.zero_variance.outcome.SavedBy` of its group."""
    added: bool
    """The group grew by it."""


class Trained(NamedTuple):
    """A rollout as the rank that trained it knows it; every array has n entries."""

    slot: int
    """Of the rank that wrote it."""
    minibatch: int
    logprobs: NDArray
    """The trainer's before the update, float32 nats."""
    entropies: NDArray
    """Likewise."""
    advantages: NDArray
    """float32, RL-ZVP's included."""
    flips: NDArray | None
    """int16; None where no routes were replayed."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """All of a step that one rank writes to disk. Built by `compass.rl.recorder`."""

    step: int
    rank: int
    world_size: int
    tokens: Sequence[RolloutTokens]
    """By slot."""
    judged: Sequence[Judged]
    """One for each of them."""
    trained: Mapping[int, Trained]
    """By slot; those that were left out of the update are not there."""
    spans: Sequence[Span]
    """When this rank did what, in seconds since the step began."""
    cpu_seconds: float
    """Of the whole process, since the last record."""
    num_experts: int
    """E of each MoE layer."""
