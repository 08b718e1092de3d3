"""The update on one rollout batch: old scores, replayed forward and backward passes, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from compass.distributed import Topology
from compass.means import Means
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Minibatch
from compass.train.loss import FlatAdvantages, Loss
from compass.train.trainer import StepReport, TokenPass, Trainer
from compass.types import Microbatch, Replay, TokenScores


@dataclass(frozen=True, kw_only=True)
class ScoredMinibatch:
    """A minibatch with what the policy thought of it before the update. Built by `score_old`."""

    minibatch: Minibatch
    microbatches: tuple[Microbatch, ...]
    """The minibatch's, with the routes that the update replays."""
    old: tuple[TokenScores, ...] | None
    """One for each; None when the update's own forward pass gives them."""

    @property
    def entropies(self) -> list[Tensor]:
        """Of this rank's loss tokens, by microbatch; none before the update gives them."""
        return [scores.entropy for scores in self.old or ()]


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What one optimizer step leaves to report. Built by `update`."""

    means: Means
    report: StepReport | None
    """None where there was nothing to train on, on any rank."""
    scored: ScoredMinibatch
    passes: tuple[TokenPass, ...]
    """What the update's forward pass saw of each microbatch."""

    @property
    def rollout_logprobs(self) -> list[Tensor]:
        """The generator's, of this rank's loss tokens, by microbatch."""
        return [m.rollout_logprobs for m in self.scored.microbatches]

    @property
    def old(self) -> tuple[TokenScores, ...]:
        """The trainer's scores before the update, by microbatch."""
        return self.scored.old or tuple(seen.scores for seen in self.passes)

    @property
    def old_logprobs(self) -> list[Tensor]:
        """The trainer's, before the update, by microbatch."""
        return [scores.logprobs for scores in self.old]


def score_old(
    trainer: Trainer, minibatches: Sequence[Minibatch], replay: Replay, *, entropies_first: bool
) -> list[ScoredMinibatch]:
    """Score every microbatch under the current weights, where that is not done for nothing: the
    first minibatch is trained on these very weights, so the forward pass of its update gives the
    same scores. It is scored nevertheless when `r2` records routes here, or when the loss must see
    all `entropies_first`. Collective.
    """
    scored = []
    for i, minibatch in enumerate(minibatches):
        if i == 0 and replay != "r2" and not entropies_first:
            scored.append(
                ScoredMinibatch(minibatch=minibatch, microbatches=minibatch.microbatches, old=None)
            )
        else:
            scored.append(_score(trainer, minibatch, replay))
    return scored


def _score(trainer: Trainer, minibatch: Minibatch, replay: Replay) -> ScoredMinibatch:
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
) -> Updated:
    """One optimizer step. Collective; with nothing to train on, on any rank, all ranks skip it."""
    means = Means()
    passes = []
    for i, microbatch in enumerate(scored.microbatches):
        old = None if scored.old is None else scored.old[i]
        of_pass, seen = trainer.forward_backward(
            microbatch,
            loss,
            num_rollouts=scored.minibatch.num_rollouts,
            num_tokens=scored.minibatch.num_tokens,
            old=old,
            flat_advantages=flat_advantages,
        )
        means.update(of_pass)
        passes.append(seen)
    report = trainer.step() if scored.microbatches else None
    if report is not None:
        means.add("actor/grad_norm", report.grad_norm)
        means.add("actor/lr", report.lr)
        means.add("actor/skipped_frac", float(report.skipped))
    return Updated(means=means, report=report, scored=scored, passes=tuple(passes))


def update_metrics(updates: Sequence[Updated], topology: Topology) -> dict[str, float]:
    """Means over all minibatches and ranks, and trainer against generator over all that was
    trained (`mismatch/*`, docs/espo.md). Collective."""
    means = Means()
    for updated in updates:
        means.update(updated.means)
    return means.reduce(topology) | mismatch_metrics(
        [logprobs for updated in updates for logprobs in updated.old_logprobs],
        [logprobs for updated in updates for logprobs in updated.rollout_logprobs],
        topology,
    )
