"""The prior over prompts: which share of them is beyond the policy, or beneath it.

A group of 8 wrong answers says little by itself: under a uniform prior its next 8 break the tie
with probability 0.47, but if a third of all prompts is impossible, with 0.05. So the pass rate p of
a prompt is taken from a mixture of three: impossible (p = eps), trivial (p = 1 - eps) and the rest
(uniform, Beta(1, 1)). The shares are fitted to the history by expectation maximisation. The whole
model is ours; METHOD 4 only asks for a posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

EPSILON = 1e-3
"""Pass rate of an impossible prompt. Above zero, so that an old pass that the history has almost
forgotten does not outweigh all that came since."""
_LOG_EPSILON, _LOG_REST = math.log(EPSILON), math.log1p(-EPSILON)

Evidence = tuple[float, float]
"""Passes and failures of one prompt; fractions when older ones count less."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Shares of the three kinds of prompts. The default knows nothing."""

    impossible: float = 1 / 3
    trivial: float = 1 / 3

    def kinds(self, evidence: Evidence) -> tuple[float, float, float]:
        """Posterior probability that a prompt is impossible, trivial, or of the rest."""
        passes, failures = evidence
        log_beta = (
            math.lgamma(1 + passes) + math.lgamma(1 + failures) - math.lgamma(2 + passes + failures)
        )
        weights = (
            self.impossible * math.exp(passes * _LOG_EPSILON + failures * _LOG_REST),
            self.trivial * math.exp(passes * _LOG_REST + failures * _LOG_EPSILON),
            (1 - self.impossible - self.trivial) * math.exp(log_beta),
        )
        total = math.fsum(weights)
        return weights[0] / total, weights[1] / total, weights[2] / total

    def break_probability(self, evidence: Evidence, *, right: bool, num_rollouts: int) -> float:
        """Probability that the next `num_rollouts` are not all right (`right`) or all wrong.

        For the rest, whose posterior is Beta(a, b) with a = 1 + passes and b = 1 + failures, k more
        are all right with probability B(a + k, b) / B(a, b).
        """
        passes, failures = evidence
        impossible, trivial, rest = self.kinds(evidence)
        same, other = (passes, failures) if right else (failures, passes)
        likely, unlikely = (trivial, impossible) if right else (impossible, trivial)
        survives = (
            likely * (1 - EPSILON) ** num_rollouts
            + unlikely * EPSILON**num_rollouts
            + rest * all_alike(1 + same, 1 + other, num_rollouts)
        )
        return 1 - survives

    def refit(self, prompts: Iterable[Evidence]) -> Population:
        """One step of expectation maximisation, from these shares, over the evidence of all
        prompts seen; one imagined prompt of each kind keeps every share above zero."""
        kinds = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), *(self.kinds(p) for p in prompts)]
        total = len(kinds) + 1
        return Population(
            impossible=math.fsum(k[0] for k in kinds) / total,
            trivial=math.fsum(k[1] for k in kinds) / total,
        )


def all_alike(a: float, b: float, num_rollouts: int) -> float:
    """E[p^k] for p of Beta(a, b): B(a + k, b) / B(a, b), as a product without cancellation."""
    return math.prod((a + i) / (a + b + i) for i in range(num_rollouts))
