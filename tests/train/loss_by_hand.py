"""Batches of a few rollouts as plain floats, and what the loops of every loss share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from compass.train.loss import LossInputs

VOCAB = 50


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The loss tokens of one rollout, as plain floats."""

    logprobs: list[float]
    old: list[float]
    entropy: list[float]
    advantage: float
    weight: float = 1.0


def random_batch(seed: int, spread: float, lengths: tuple[int, ...]) -> list[Sequence]:
    """Log-ratios of standard deviation `spread`, with a common part that moves a whole rollout."""
    draw = random.Random(seed)
    batch = []
    for length in lengths:
        old = [-draw.expovariate(1.0) for _ in range(length)]
        shift = draw.gauss(0, spread)
        batch.append(
            Sequence(
                logprobs=[o + shift + draw.gauss(0, spread) for o in old],
                old=old,
                entropy=[draw.uniform(0, math.log(VOCAB)) for _ in range(length)],
                advantage=draw.choice((-1, 1)) * draw.uniform(0.5, 2),
            )
        )
    return batch


def inputs(batch: list[Sequence], num_rollouts: int, num_tokens: int) -> LossInputs:
    """Double precision, so that only the formula can differ."""
    lengths = torch.tensor([len(s.logprobs) for s in batch])

    def flat(field: str) -> torch.Tensor:
        return torch.tensor([x for s in batch for x in getattr(s, field)], dtype=torch.float64)

    advantage_B = torch.tensor([s.advantage for s in batch], dtype=torch.float64)
    return LossInputs(
        logprobs_R=flat("logprobs").requires_grad_(),
        old_logprobs_R=flat("old"),
        entropy_R=flat("entropy").requires_grad_(),
        old_entropy_R=flat("entropy"),
        advantages_R=advantage_B.repeat_interleave(lengths),
        weights_B=torch.tensor([s.weight for s in batch], dtype=torch.float64),
        correction_R=torch.ones(sum(lengths), dtype=torch.float64),
        sequence_ids_R=torch.arange(len(batch)).repeat_interleave(lengths),
        num_sequences=len(batch),
        num_rollouts=num_rollouts,
        num_tokens=num_tokens,
        vocab_size=VOCAB,
    )


def whole(batch: list[Sequence]) -> LossInputs:
    """The batch is the whole minibatch."""
    return inputs(batch, len(batch), sum(len(s.logprobs) for s in batch))


def surrogate(ratio: float, advantage: float, low: float, high: float) -> float:
    clipped = min(max(ratio, 1 - low), 1 + high)
    return min(ratio * advantage, clipped * advantage)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def group_ratio(s: Sequence, members: list[int]) -> float:
    return math.exp(mean([s.logprobs[t] - s.old[t] for t in members]))


def nudged(batch: list[Sequence], b: int, t: int, by: float) -> list[Sequence]:
    logprobs = list(batch[b].logprobs)
    logprobs[t] += by
    return [*batch[:b], replace(batch[b], logprobs=logprobs), *batch[b + 1 :]]


def central_differences(
    loss: Callable[[list[Sequence]], float], batch: list[Sequence]
) -> list[float]:
    step = 1e-6
    return [
        (loss(nudged(batch, b, t, step)) - loss(nudged(batch, b, t, -step))) / (2 * step)
        for b, s in enumerate(batch)
        for t in range(len(s.logprobs))
    ]
