"""Stage 2: a flat group samples its prompt again, where that beats starting on another prompt.

How far a group may climb is settled before anything is written, from history alone, once for a
tie of right answers and once for one of wrong ones. While it is written, its verdicts decide and
nothing else: a gate that saw the lengths it is about to train on would bias them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from compass.errors import UserError
from compass.rl.zero_variance.history import Prospects
from compass.rl.zero_variance.outcome import tie_sign
from compass.rl.zero_variance.population import Evidence, Population

ExpandWeight = Literal["base", "inverse", "none"]


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """How far a flat group grows (docs/zero_variance.md, stage 2)."""

    enabled: bool = True
    """Let flat groups grow: N, 2N, 4N, ..."""
    max_group_size: int = 32
    """Largest group."""
    gated: bool = True
    """Grow only where a token is more likely to break the tie than to make another prompt's group
    useful; False climbs the whole ladder."""
    max_added: float = 1.0
    """Most rollouts that growth may add to a step, as a share of those it begins with. They are
    shared out before the rollout, to those groups first where a rollout is most likely to be the
    one that breaks a tie. Ours."""
    weight: ExpandWeight = "base"
    """What the rollouts of a group that grew weigh (docs/zero_variance.md): `base`, as much
    together as those of a group that did not; `inverse`, by the inverse of the probability of
    having been flat, so that no prompt weighs more for having been sampled again (for
    `advantage.normalize = "none"`); `none`, one each. Ours."""

    def __post_init__(self) -> None:
        if self.max_group_size < 1:
            raise UserError(f"expand.max_group_size={self.max_group_size} must be at least 1")
        if not self.max_added >= 0:
            raise UserError(f"expand.max_added={self.max_added} must be 0 or more")

    def check(self, group_size: int) -> None:
        """Raises UserError for inverse weights where the last rung does not double a group: what
        began with a tie could then not come out in every proportion, and no weight makes up for
        what is never seen."""
        sizes = ladder_sizes(group_size, self.max_group_size)
        if self.weight == "inverse" and any(b != 2 * a for a, b in pairwise(sizes)):
            raise UserError(
                f"expand.weight=inverse with max_group_size={self.max_group_size} and "
                f"group_size={group_size}: every rung must double the group; choose "
                f"max_group_size={sizes[-2]}"
            )


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The sizes that one group may have. Built by `share_ladders`."""

    base: int
    right: tuple[int, ...] = ()
    """Sizes that it grows to, one after another, while all answers are right."""
    wrong: tuple[int, ...] = ()
    """While all are wrong."""

    @property
    def largest(self) -> int:
        """The largest size it can reach."""
        return max((self.base, *self.right, *self.wrong))

    def next_size(self, verdicts: Sequence[float], current: int) -> int:
        """The size to grow to from `current`, which is itself where the group is not flat, has no
        verdict at all (more rollouts for a verifier that breaks would be wasted), or is at its
        end.

        Args:
            verdicts: of its valid rollouts.
        """
        sign = tie_sign(verdicts)
        sizes = () if sign == 0 else self.right if sign > 0 else self.wrong
        return min((size for size in sizes if size > current), default=current)

    def up_to(self, size: int) -> Ladder:
        """The ladder without the sizes above `size`."""
        right, wrong = (tuple(s for s in sizes if s <= size) for sizes in (self.right, self.wrong))
        return Ladder(base=self.base, right=right, wrong=wrong)


def ladder_sizes(base: int, largest: int) -> list[int]:
    """N, 2N, 4N, ... up to the largest, which may be less than double the one before."""
    sizes = [base]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return sizes


def gated_ladder(
    base: int,
    cfg: ExpandConfig,
    *,
    evidence: Evidence,
    tokens_per_rollout: float,
    prospects: Prospects | None,
) -> Ladder:
    """The ladder that the gate leaves a prompt.

    A rung to size N stays where P(the next k rollouts break the tie) w(N) / (k t) exceeds what a
    fresh prompt's group yields per token, with t the tokens a rollout of this prompt is expected to
    take and w `broken_tie_worth`. The rungs above one that is closed cannot be reached.

    Args:
        evidence: passes and failures of this prompt at earlier visits.
        prospects: of the history at the start of the step. None: nothing is known yet; the group
            then stays, since a prompt just seen flat is a worse bet than one never seen.
    """
    sizes = ladder_sizes(base, cfg.max_group_size) if cfg.enabled else [base]
    if not cfg.gated:
        return Ladder(base=base, right=tuple(sizes[1:]), wrong=tuple(sizes[1:]))
    if prospects is None:
        return Ladder(base=base)

    def open_sizes(right: bool) -> tuple[int, ...]:
        reached = []
        for size, larger in pairwise(sizes):
            passes, failures = evidence
            tied = (passes + size, failures) if right else (passes, failures + size)
            chance = prospects.break_probability(tied, right=right, num_rollouts=larger - size)
            worth = chance * broken_tie_worth(larger, base)
            if worth <= prospects.useful_per_token * (larger - size) * tokens_per_rollout:
                break
            reached.append(larger)
        return tuple(reached)

    return Ladder(base=base, right=open_sizes(True), wrong=open_sizes(False))


def broken_tie_worth(size: int, base: int) -> float:
    """What a tie broken by one rollout of `size` teaches, beside a group that differed at base
    size: the spread of its verdicts over the mean spread of k right answers of `base`, for k from 1
    to base - 1."""
    spreads = [math.sqrt(k * (base - k)) / base for k in range(1, base)]
    mean = math.fsum(spreads) / len(spreads) if spreads else 0.5
    return math.sqrt(size - 1) / size / mean


def share_ladders(
    ladders: Sequence[Ladder],
    evidence: Sequence[Evidence],
    population: Population,
    *,
    max_added: float,
) -> list[Ladder]:
    """The ladders, cut so that all groups together can add at most `max_added` times the rollouts
    they begin with. Rungs go, one by one, to whom a rollout is most likely to break a tie.

    Args:
        evidence: of each group's prompt at earlier visits.
    """
    budget = int(max_added * sum(ladder.base for ladder in ladders))
    granted = [ladder.base for ladder in ladders]
    rungs = [
        _rungs(ladder, of_prompt, population)
        for ladder, of_prompt in zip(ladders, evidence, strict=True)
    ]
    # A rung is worth more per rollout than the one above it; the heap holds each group's next.
    heap = [(-worth, i, 0) for i, of_group in enumerate(rungs) for _, worth in of_group[:1]]
    heapq.heapify(heap)
    while heap:
        _, i, place = heapq.heappop(heap)
        size = rungs[i][place][0]
        if size - granted[i] > budget:
            continue
        budget -= size - granted[i]
        granted[i] = size
        for _, worth in rungs[i][place + 1 : place + 2]:
            heapq.heappush(heap, (-worth, i, place + 1))
    return [ladder.up_to(size) for ladder, size in zip(ladders, granted, strict=True)]


def _rungs(ladder: Ladder, evidence: Evidence, population: Population) -> list[tuple[int, float]]:
    """(size, probability per rollout added that it breaks a tie) of each rung of a ladder, as it
    looks before the first rollout: the tie must come about first."""
    sizes = sorted({ladder.base, *ladder.right, *ladder.wrong})
    return [
        (
            larger,
            sum(
                population.break_probability(evidence, right=right, num_rollouts=larger)
                - population.break_probability(evidence, right=right, num_rollouts=size)
                for right, reached in ((True, ladder.right), (False, ladder.wrong))
                if larger in reached
            )
            / (larger - size),
        )
        for size, larger in pairwise(sizes)
    ]
