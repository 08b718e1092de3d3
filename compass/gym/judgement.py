"""What a domain's verifier returns; `compass.gym.reward` turns it into a timed `Score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from compass.types import Prompt

THINK_END = "</think>"
"""Closes the reasoning; what follows is the answer."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verifier's opinion of one completion."""

    verdict: float
    """In [0, 1]; 1 is right."""
    reason: str = ""
    """Why, when there is more to say than the number."""
    breakdown: Mapping[str, float] = field(default_factory=dict)
    """Named components, for the log."""
    valid: bool = True
    """False: no verdict could be reached, and the fault is not the completion's."""


Judge = Callable[[Prompt, str, bool], Judgement]
"""(prompt, completion text, finished) -> Judgement. `finished`: the model stopped by itself."""


def no_verdict(reason: str) -> Judgement:
    """The verifier cannot judge this prompt at all, whatever the completion says."""
    return Judgement(verdict=0.0, valid=False, reason=reason)


def after_thinking(completion: str) -> str | None:
    """The text after the last `</think>`; all of it when nothing was thought.

    None when a `<think>` was opened and never closed: what follows is thinking, not an answer.
    """
    _, closed, answer = completion.rpartition(THINK_END)
    if not closed and "<think>" in completion:
        return None
    return answer
