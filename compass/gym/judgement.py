"""What a domain's verifier returns; `compass.gym.reward` turns it into a timed `Score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from compass.types import THINK_END, THINK_START, Prompt


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verifier's opinion of one completion."""

    verdict: float
    """In [0, 1]; 1 is right."""
    reward: float | None = None
    """Any finite number; None is the verdict."""
    reason: str = ""
    """Why, when there is more to say than the number."""
    breakdown: Mapping[str, float] = field(default_factory=dict)
    """Named components, for the log."""
    answer: str | None = None
    """The answer that was read out of the completion; None where none was found, and
    in domains that read none. Completions with the same one vote together in majority@k."""
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


Check = Callable[[Prompt], str | None]
"""Why a domain cannot judge a prompt whatever is answered, with the field that it needs; None when
it can."""

OTHER_ANSWER_FIELDS = (
    *("final_answer", "gold_answer", "correct_answer", "expected_answer", "reference_answer"),
    *("ground_truth", "reference", "target", "label", "gold", "answers"),
)
"""What other prompt files call the answer."""


def missing_answer(prompt: Prompt) -> str:
    """Why a prompt without an answer cannot be judged, and what to rename if it is there."""
    found = [name for name in OTHER_ANSWER_FIELDS if prompt.extra.get(name) is not None]
    if found:
        return f"needs `answer`: has {found[0]}; rename it to answer"
    return "needs `answer`: there is none, or it is null"


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
