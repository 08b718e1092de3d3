"""A run that learns nothing must not look healthy."""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_FRUITLESS_STEPS = 3
"""Steps in a row that end a run: without a finite gradient that is not zero, or without a valid
verdict."""


class RunHealth:
    """Counts the steps in a row from which nothing can have been learned; alike on every rank."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._was_finite = False
        """Whether any gradient was."""
        self._without_gradient: list[int] = []
        self._without_verdict: list[int] = []

    def record(self, step: int, *, gradient_norms: Sequence[float], judged: bool) -> str | None:
        """Close a step; returns why the run is to end, with the third in a row.

        Args:
            gradient_norms: of each optimizer step tried; one that is zero or not finite teaches
                nothing. With none (every group was flat) there is nothing to say of gradients: the
                count stays as it is.
            judged: whether any verdict was valid, on any rank.
        """
        self._num_steps += 1
        self._was_finite |= any(map(math.isfinite, gradient_norms))
        if any(0 < norm < math.inf for norm in gradient_norms):
            self._without_gradient = []
        elif gradient_norms:
            self._without_gradient.append(step)
        self._without_verdict = [] if judged else [*self._without_verdict, step]
        return self._ailment(MAX_FRUITLESS_STEPS)

    def of_short_run(self) -> str | None:
        """Why a run that was shorter than it takes to tell came to no good: no gradient of any step
        was finite (one of zero may come of few rollouts), or no verdict valid."""
        if not self._num_steps:
            return None
        return self._ailment(self._num_steps, count_gradients=not self._was_finite)

    def _ailment(self, num_steps: int, *, count_gradients: bool = True) -> str | None:
        if count_gradients and len(self._without_gradient) >= num_steps:
            return (
                f"no finite gradient but zero in {_named(self._without_gradient)}, so nothing was "
                "learned: lower optim.lr, or look for what is not finite in the data or the model"
            )
        if len(self._without_verdict) >= num_steps:
            return (
                f"no valid verdict in {_named(self._without_verdict)}, so nothing was learned: see "
                "reward/timeouts, and what the verifiers say of the rollouts in tensorboard"
            )
        return None


def _named(steps: Sequence[int]) -> str:
    numbers = ", ".join(map(str, steps))
    return f"step {numbers}" if len(steps) == 1 else f"{len(steps)} steps in a row ({numbers})"
