"""What the rollouts of a group weigh whose number of rollouts depended on their verdicts.

Stopping on verdicts alone leaves the direction of a prompt's gradient as it is: given the verdicts,
right answers are still draws of right answers. What changes is how much the prompt weighs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from compass.rl.zero_variance.expand import ExpandWeight, Ladder
from compass.rl.zero_variance.outcome import differ
from compass.types import FLAT_TOLERANCE, RolloutGroup

CLIMBED = 0.5
"""Share of a prompt's weight that a rung leaves to those above it (`inverse`). Ours."""


def group_weight(group: RolloutGroup, ladder: Ladder, weight: ExpandWeight) -> tuple[float, float]:
    """(factor on the loss of each rollout, what each adds to the denominators).

    - `none`: 1 and 1.
    - `base`: N_0 / N both, so that a grown group counts as one of base size N_0.
    - `inverse`: N_0 / N in the denominators; on the loss also `inverse_factor`.
    """
    if weight == "none":
        return 1.0, 1.0
    share = ladder.base / len(group.rollouts)
    return share * (inverse_factor(group, ladder) if weight == "inverse" else 1.0), share


def inverse_factor(group: RolloutGroup, ladder: Ladder) -> float:
    """Inverse probability of having been flat, so that E[factor * k/N (1 - k/N)] is the same
    multiple of p (1 - p) for every p.

    The rungs share the weight: with l = `CLIMBED`, a group decided at its base size has 1 - l, at
    the next l (1 - l), and so on; the last rung has all that is left. On its rung, a group of N is
    unbiased with N / (N - 1), divided by the probability that its verdicts in random order would
    have begun with a tie at the rung below: one of a sign for which its ladder goes on. Where it
    goes on for one sign alone, groups of the other kind are never seen on that rung, and prompts
    near p = 1 (or 0) lose up to the share of the rung. Factors are relative to a group that could
    not grow, which has 1; so has one that stayed flat, whose verdicts carry no gradient.
    """
    verdicts = group.valid_verdicts
    sizes = sorted({ladder.base, *ladder.right, *ladder.wrong})
    if len(sizes) == 1 or not differ(verdicts):
        return 1.0
    rung = sizes.index(len(group.rollouts))
    is_last = rung == len(sizes) - 1
    share = CLIMBED**rung * (1.0 if is_last else 1 - CLIMBED)
    if rung:
        below = [r for r in group.rollouts[: sizes[rung - 1]] if r.score.valid]
        share /= _tie_probability(verdicts, len(below), sizes[rung], ladder)
    return share * _bessel(len(verdicts)) / _bessel(ladder.base)


def _bessel(size: int) -> float:
    """N / (N - 1): what makes the variance of N verdicts unbiased; 1 where there is none."""
    return size / (size - 1) if size > 1 else 1.0


def _tie_probability(
    verdicts: Sequence[float], num_first: int, grown: int, ladder: Ladder
) -> float:
    """That the first of these verdicts, in random order, are equal and let the group grow."""
    counts = Counter(round(verdict / FLAT_TOLERANCE) for verdict in verdicts)
    ways = sum(
        comb(count, num_first)
        for verdict, count in counts.items()
        if grown in (ladder.right if verdict > 0 else ladder.wrong)
    )
    return ways / comb(len(verdicts), num_first)
