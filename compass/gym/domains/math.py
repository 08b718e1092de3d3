r"""Domain `math`: is the final answer the reference, read by `compass.gym.mathematics`.

The final answer is looked for after `</think>` only: in the last box, `<answer>` tag or final
`####` line, else in what the text says last. It is read whole or not at all.
"""

from __future__ import annotations

from compass.gym.judgement import (
    NEVER_CLOSED,
    Judgement,
    after_thinking,
    missing_answer,
    no_verdict,
)
from compass.types import Prompt

_MAX_SHOWN = 100
"""Characters of a reference answer in a message."""


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the final answer equals `prompt.answer`, else 0.

    Not valid when the reference answer is missing or cannot be read whole. A completion that was
    cut off (`finished` false) is judged like any other: it may well hold its answer.
    """
    from compass.gym.mathematics.answer import UnreadableError, written
    from compass.gym.mathematics.compare import same_answer
    from compass.gym.mathematics.verdict import final_answer, read_reference

    unjudgeable = check(prompt)
    if unjudgeable is not None or prompt.answer is None:
        return no_verdict(f"no reference answer: {unjudgeable}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    try:
        answer = final_answer(text, finished=finished)
    except UnreadableError as error:
        return Judgement(verdict=0.0, reason=f"no answer found: {error}")
    right = same_answer(read_reference(prompt.answer), answer)
    return Judgement(verdict=float(right), answer=written(answer))


def check(prompt: Prompt) -> str | None:
    """Why no completion can be judged: there is no answer, or it cannot be read whole."""
    from compass.gym.mathematics.answer import UnreadableError
    from compass.gym.mathematics.verdict import read_reference

    if prompt.answer is None:
        return missing_answer(prompt)
    try:
        read_reference(prompt.answer)
    except UnreadableError as error:
        shown = prompt.answer[:_MAX_SHOWN]
        return f"needs an `answer` that it can read: {shown!r} cannot be, {error}"
    return None
