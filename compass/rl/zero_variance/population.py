"""The prior over prompts: which share of them is beyond the policy, or beneath it.

A group of 8 wrong answers says little by itself: under a uniform prior its next 8 break the tie
with probability 0.47, but if a third of all prompts is impossible, with 0.05. So the pass rate p of
a prompt is taken from a mixture of three: impossible (p = eps), trivial (p = 1 - eps) and the rest
(uniform, Beta(1, 1)). The shares are fitted to the history by incremental expectation maximisation
(Neal and Hinton, 1998): each visit brings one prompt's kind up to date. The whole model is ours.
"""

from __future__ import annotations

import math
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

    @classmethod
    def fitted(cls, *, impossible: float, trivial: float, num_prompts: int) -> Population:
        """The shares that follow from sums of `kinds` over `num_prompts` prompts. One imagined
        prompt of each kind keeps every share above zero."""
        return cls(
            impossible=(1 + impossible) / (3 + num_prompts),
            trivial=(1 + trivial) / (3 + num_prompts),
        )

    def kinds(self, evidence: Evidence) -> tuple[float, float, float]:
        """Posterior probability that a prompt is impossible, trivial, or of the rest."""
        passes, failures = evidence
        logs = (
            passes * _LOG_EPSILON + failures * _LOG_REST,
            passes * _LOG_REST + failures * _LOG_EPSILON,
            math.lgamma(1 + passes)
            + math.lgamma(1 + failures)
            - math.lgamma(2 + passes + failures),
        )
        shares = (self.impossible, self.trivial, 1 - self.impossible - self.trivial)
        # Relative to the likeliest kind: a long history would underflow all three.
        highest = max(logs)
        weights = [w * math.exp(log - highest) for w, log in zip(shares, logs, strict=True)]
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


def all_alike(a: float, b: float, num_rollouts: int) -> float:
    """E[p^k] for p of Beta(a, b): B(a + k, b) / B(a, b), as a product without cancellation."""
    return math.prod((a + i) / (a + b + i) for i in range(num_rollouts))
