r"""Domain `math`: is the final answer the reference, read by `compass.gym.mathematics`.

The final answer is looked for after `</think>` only: in the last box, `<answer>` tag or final
`####` line, else in what the text says last. It is read whole or not at all.
"""

from __future__ import annotations

from compass.gym.judgement import NEVER_CLOSED, Judgement, after_thinking, no_verdict
from compass.types import Prompt


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the final answer equals `prompt.answer`, else 0.

    Not valid when the reference answer is missing or cannot be read whole. A completion that was
    cut off (`finished` false) is judged like any other: it may well hold its answer.
    """
    from compass.gym.mathematics.answer import UnreadableError
    from compass.gym.mathematics.compare import same_answer
    from compass.gym.mathematics.verdict import final_answer, read_reference

    if prompt.answer is None:
        return no_verdict(f"prompt {prompt.id!r} has no reference answer")
    try:
        reference = read_reference(prompt.answer)
    except UnreadableError as error:
        return no_verdict(f"reference answer {prompt.answer!r} cannot be read: {error}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    try:
        answer = final_answer(text, finished=finished)
    except UnreadableError as error:
        return Judgement(verdict=0.0, reason=f"no answer found: {error}")
    return Judgement(verdict=float(same_answer(reference, answer)))
