"""What a domain's verifier returns; `compass.gym.reward` turns it into a timed `Score`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from compass.types import THINK_END, THINK_START, Prompt


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


class Judge(Protocol):
    """A domain's verifier.

    `finished`: the model stopped by itself. `thinking_open`: the prompt as it was rendered ends
    inside `<think>`, so that the completion begins there.
    """

    def __call__(
        self, prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
    ) -> Judgement: ...


def no_verdict(reason: str) -> Judgement:
    """The verifier cannot judge this prompt at all, whatever the completion says."""
    return Judgement(verdict=0.0, valid=False, reason=reason)


NEVER_CLOSED = "no answer found: <think> was never closed"
"""Why a completion that ends inside its thinking is wrong."""


def after_thinking(completion: str, thinking_open: bool = False) -> str | None:
    """The text after the last `</think>`; all of it when nothing was thought.

    None when thinking was opened, by the completion or by its prompt, and never closed: what
    follows is thinking, not an answer.
    """
    _, closed, answer = completion.rpartition(THINK_END)
    if THINK_START in answer or (thinking_open and not closed):
        return None
    return answer
