"""Domain `choice`: multiple choice, judged by the letter or the text of an option."""

from __future__ import annotations

from compass.errors import UserError
from compass.gym.choice.options import option_of, read_options
from compass.gym.choice.statement import final_option
from compass.gym.judgement import (
    NEVER_CLOSED,
    Judgement,
    after_thinking,
    missing_answer,
    no_verdict,
)
from compass.types import Prompt


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 when the option that the answer means is that of `prompt.answer`, else 0."""
    unjudgeable = check(prompt)
    if unjudgeable is not None:
        return no_verdict(f"prompt {prompt.id!r} {unjudgeable}")
    text = after_thinking(completion, thinking_open)
    if text is None:
        return Judgement(verdict=0.0, reason=NEVER_CLOSED)
    options = read_options(prompt.extra) or ()
    meant = final_option(text, options, finished=finished)
    if meant is None:
        return Judgement(verdict=0.0, reason="no answer found: it names no option, or several")
    right = meant == option_of(prompt.answer or "", options)
    return Judgement(verdict=float(right), answer=options[meant])


def check(prompt: Prompt) -> str | None:
    """Why no answer can be judged: there are no options, or the reference is none of them."""
    try:
        options = read_options(prompt.extra)
    except UserError as error:
        return str(error)
    if options is None:
        return "needs `options`: a list of texts"
    if prompt.answer is None:
        return missing_answer(prompt)
    if option_of(prompt.answer, options) is None:
        return f"needs an `answer` that is one of its options: {prompt.answer[:100]!r} is not"
    return None
