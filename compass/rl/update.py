"""The update on one rollout batch: old scores, replayed forward and backward passes, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from compass.distributed import Topology
from compass.means import Means
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Minibatch
from compass.train.loss import Loss
from compass.train.trainer import FlatAdvantages, Trainer
from compass.types import Microbatch, TokenScores

Replay = Literal["r3", "r2", "off"]


@dataclass(frozen=True, kw_only=True)
class ScoredMinibatch:
    """A minibatch with what the policy thought of it before the update. Built by `score_old`."""

    minibatch: Minibatch
    microbatches: tuple[Microbatch, ...]
    """The minibatch's, with the routes that the update replays."""
    old: tuple[TokenScores, ...]
    """One for each."""

    @property
    def entropies(self) -> list[Tensor]:
        """Of this rank's loss tokens, by microbatch."""
        return [scores.entropy for scores in self.old]


def score_old(trainer: Trainer, minibatch: Minibatch, replay: Replay) -> ScoredMinibatch:
    """Score every microbatch under the current weights, which is where `r2` records routes.

    Collective.
    """
    microbatches, old = [], []
    for microbatch in minibatch.microbatches:
        scores, live_TLK = trainer.score(microbatch)
        if replay == "r2":
            microbatch = replace(microbatch, routed_experts=live_TLK)
        microbatches.append(microbatch)
        old.append(scores)
    return ScoredMinibatch(minibatch=minibatch, microbatches=tuple(microbatches), old=tuple(old))


def update(
    trainer: Trainer, scored: ScoredMinibatch, loss: Loss, flat_advantages: FlatAdvantages | None
) -> Means:
    """One optimizer step. Collective; with nothing to train on, on any rank, all ranks skip it."""
    means = Means()
    if not scored.microbatches:
        return means
    for microbatch, old in zip(scored.microbatches, scored.old, strict=True):
        means.update(
            trainer.forward_backward(
                microbatch,
                loss,
                num_rollouts=scored.minibatch.num_rollouts,
                num_tokens=scored.minibatch.num_tokens,
                old=old,
                flat_advantages=flat_advantages,
            )
        )
    report = trainer.step()
    means.add("actor/grad_norm", report.grad_norm)
    means.add("actor/lr", report.lr)
    means.add("actor/skipped_frac", float(report.skipped))
    return means


def mismatch_of(scored: Sequence[ScoredMinibatch], topology: Topology) -> dict[str, float]:
    """Trainer against generator over everything that was scored (METHOD 3). Collective."""
    return mismatch_metrics(
        [old.logprobs for minibatch in scored for old in minibatch.old],
        [m.rollout_logprobs for minibatch in scored for m in minibatch.microbatches],
        topology,
    )
