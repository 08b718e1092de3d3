"""Stage 3: length and repetition separate equal rewards, and never reorder different ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Protocol

from compass.errors import UserError
from compass.types import FLAT_TOLERANCE

MARGIN = 0.5
"""The smallest step of a reward at which shaping has its full weight: ternary verdicts are
0, 0.5 and 1. Finer rewards scale it down."""


class Reshape(Protocol):
    """`reshape_rewards` with the weights and lengths of a run."""

    def __call__(
        self,
        given: Sequence[float | None],
        lengths: Sequence[int],
        repetition: Sequence[float],
        *,
        all_right: bool,
    ) -> list[float | None]: ...


@dataclass(frozen=True, kw_only=True)
class ReshapeConfig:
    """Weights of shaping (arXiv 2512.07710, section 2.4.1); together they stay below `MARGIN`."""

    enabled: bool = True
    """Shape rewards; otherwise they are as they were given."""
    w_len: float = 0.2
    """Weight of the soft overlong punishment (arXiv 2503.14476, eq. 13)."""
    w_rep: float = 0.2
    """Weight of the repetition penalty. The form is ours."""
    beta: float = 0.0
    """How much the longest answer of an all-right group loses to the shortest. Ours; 0 leaves such
    groups to RL-ZVP, since even 0.05 cost more accuracy than it saved tokens
    (docs/zero_variance.md)."""
    tau: float = 0.2
    """Share of repeated 4-grams that costs nothing. Ours."""
    l_max: int | None = None
    """Length at which the overlong punishment is full: at most, and by default, the step's limit
    on completions."""
    l_cache: int | None = None
    """Tokens before `l_max` over which it grows; by default a fifth of `l_max`, the share of
    arXiv 2503.14476 (4096 of 20480)."""

    def __post_init__(self) -> None:
        for name in ("w_len", "w_rep", "beta"):
            if not getattr(self, name) >= 0:
                raise UserError(f"reshape.{name}={getattr(self, name)} must be 0 or more")
        total = self.w_len + self.w_rep + self.beta
        if not total < MARGIN:
            raise UserError(
                f"reshape.w_len + w_rep + beta = {total:g} must stay below {MARGIN}, or a wrong "
                "answer could outrank a right one; lower the weights"
            )
        if not 0 <= self.tau < 1:
            raise UserError(f"reshape.tau={self.tau} must be at least 0 and below 1")
        for name in ("l_max", "l_cache"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"reshape.{name}={value} must be at least 1")

    def bind(self, max_completion_tokens: int) -> Reshape:
        """`reshape_rewards` with these values, for completions of at most so many tokens.

        Raises:
            UserError: `l_cache` exceeds the length at which the punishment is full.
        """
        l_max = min(self.l_max or max_completion_tokens, max_completion_tokens)
        l_cache = self.l_cache or max(1, l_max // 5)
        if l_cache > l_max:
            raise UserError(
                f"reshape.l_cache={l_cache} exceeds l_max={l_max} (at most the run's and each "
                "curriculum stage's max_completion_tokens); choose at most that"
            )
        return partial(
            reshape_rewards,
            w_len=self.w_len,
            w_rep=self.w_rep,
            beta=self.beta,
            tau=self.tau,
            l_max=l_max,
            l_cache=l_cache,
        )


def reshape_rewards(
    given: Sequence[float | None],
    lengths: Sequence[int],
    repetition: Sequence[float],
    *,
    w_len: float,
    w_rep: float,
    beta: float,
    tau: float,
    l_max: int,
    l_cache: int,
    all_right: bool,
) -> list[float | None]:
    """Shaped rewards of one group, None where the given one is.

    r = given + w_len * L + w_rep * R, and in a group of right answers alone also
    - beta * (length - shortest) / (longest - shortest + 1). All terms lie in [-1, 0] before their
    weights. A group of wrong answers has no term for length as such: short wrong answers must not
    win. Where rewards of the group lie closer than `MARGIN`, its shaping is scaled down in
    proportion, so that of two different rewards the higher always stays the higher.

    Args:
        given: rewards; None: the verifier failed.
        lengths: completion tokens.
        repetition: see `repetition`.
        all_right: by the verdicts.
    """
    valid = [i for i, reward in enumerate(given) if reward is not None]
    known = [reward for reward in given if reward is not None]
    shortest = min((lengths[i] for i in valid), default=0)
    longest = max((lengths[i] for i in valid), default=0)
    scale = min(1.0, _smallest_step(known) / MARGIN)
    rewards: list[float | None] = [None] * len(given)
    for i, reward in zip(valid, known, strict=True):
        shaping = w_len * overlong(lengths[i], l_max=l_max, l_cache=l_cache)
        shaping -= w_rep * min(1.0, max(0.0, (repetition[i] - tau) / (1 - tau)))
        if all_right:
            shaping -= beta * (lengths[i] - shortest) / (longest - shortest + 1)
        rewards[i] = reward + scale * shaping
    return rewards


def overlong(length: int, *, l_max: int, l_cache: int) -> float:
    """Soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to l_max - l_cache tokens, then
    linearly down to -1 at l_max."""
    return -min(1.0, max(0.0, (length - (l_max - l_cache)) / l_cache))


def repetition(token_ids: Sequence[int]) -> float:
    """1 - distinct / total 4-grams: 0 without repetition, near 1 for a loop. 0 below 4 tokens."""
    ngrams = list(zip(token_ids, token_ids[1:], token_ids[2:], token_ids[3:], strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _smallest_step(values: Sequence[float]) -> float:
    """Between any two different values; 1 when none differ. Neighbours alone would not do: of a
    chain of near-equal ones the ends may differ."""
    steps = (b - a for a, b in combinations(sorted(set(values)), 2))
    return min((step for step in steps if step > FLAT_TOLERANCE), default=1.0)
