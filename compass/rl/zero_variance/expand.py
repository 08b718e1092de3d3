"""Stage 2: a flat group samples its prompt again, where that beats starting on another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compass.errors import UserError
from compass.rl.zero_variance.history import Prospects
from compass.rl.zero_variance.outcome import tie_sign
from compass.rl.zero_variance.population import Evidence


@dataclass(frozen=True, kw_only=True)
class ExpandConfig:
    """How far a flat group grows (METHOD 4, stage 2)."""

    enabled: bool = True
    """Let flat groups grow: N, 2N, 4N, ..."""
    max_group_size: int = 32
    """Largest group."""
    gated: bool = True
    """Grow only where a token is more likely to break the tie than to make another prompt's group
    useful; False climbs the whole ladder."""

    def __post_init__(self) -> None:
        if self.max_group_size < 1:
            raise UserError(f"expand.max_group_size={self.max_group_size} must be at least 1")


def next_size(verdicts: Sequence[float], current: int, cfg: ExpandConfig) -> int:
    """The size a group grows to by the ladder alone: double while flat, up to the largest.

    Args:
        verdicts: of its valid rollouts. Without any the group stays as it is: more rollouts for a
            verifier that breaks would be wasted.
        current: rollouts so far, valid or not.
    """
    if not cfg.enabled or tie_sign(verdicts) == 0:
        return current
    return max(current, min(2 * current, cfg.max_group_size))


def gated_size(
    verdicts: Sequence[float],
    current: int,
    cfg: ExpandConfig,
    *,
    evidence: Evidence,
    num_tokens: int,
    prospects: Prospects | None,
) -> int:
    """`next_size`, if the gate lets it.

    It does when P(the next k rollouts break the tie) / (k t) exceeds what a fresh prompt's group
    yields per token, with t the tokens a rollout of this group takes.

    Args:
        evidence: passes and failures of this prompt at earlier visits.
        num_tokens: completion tokens of the group's `current` rollouts.
        prospects: of the history at the start of the step, the same for all groups of it. None:
            nothing is known yet; the group then stays, since a prompt just seen flat is a worse
            bet than one never seen.
    """
    size = next_size(verdicts, current, cfg)
    if size == current or not cfg.gated:
        return size
    if prospects is None:
        return current
    right = tie_sign(verdicts) > 0
    passes, failures = evidence
    passes, failures = (
        (passes + len(verdicts), failures) if right else (passes, failures + len(verdicts))
    )
    probability = prospects.population.break_probability(
        (passes, failures), right=right, num_rollouts=size - current
    )
    cost = (size - current) * num_tokens / current
    return size if probability > prospects.useful_per_token * cost else current
