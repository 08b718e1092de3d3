r"""Domain `math`: is the final answer equivalent to the reference, by Math-Verify.

The final answer is looked for after `</think>` only: the last `\boxed{...}`, else the text after
the last `####` (GSM8K's mark), else what Math-Verify finds in the prose (the last number or
formula). Math-Verify's own time limits need signals of the main thread, so they are off; a pool
worker that takes too long is killed instead.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from compass.gym.judgement import Judgement, after_thinking, no_verdict
from compass.types import Prompt

BOXED = "\\boxed{"
_AFTER_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ '-]+[A-Za-z]+)*")
_NUMBER_WITH_UNIT = re.compile(
    r"(?P<number>[-+]?[\d,]*\.?\d+(?:\s*/\s*\d+)?)\s+[A-Za-z]{2,}[A-Za-z ]*"
)
_NOT_UNITS = re.compile(r"\b(?:pi|sin|cos|tan|sqrt|log|ln|exp|or|and)\b")


def judge(prompt: Prompt, completion: str, finished: bool) -> Judgement:
    """1 when the final answer equals `prompt.answer`, else 0.

    Not valid when the reference answer is missing or cannot be parsed. A completion that was cut
    off (`finished` false) is judged like any other: it may well hold its answer.
    """
    if prompt.answer is None:
        return no_verdict(f"prompt {prompt.id!r} has no reference answer")
    reference = parse_expression(prompt.answer)
    if not reference:
        return no_verdict(f"reference answer {prompt.answer!r} cannot be parsed")
    text = after_thinking(completion)
    if text is None:
        return Judgement(verdict=0.0, reason="no answer found: <think> was never closed")
    marked = marked_answer(text)
    answer = _parse(text) if marked is None else parse_expression(marked)
    if not answer:
        return Judgement(verdict=0.0, reason="no answer found")
    return Judgement(verdict=float(is_equivalent(reference, answer)))


def marked_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, else the rest of the last `####` line, else None."""
    start = text.rfind(BOXED)
    if start >= 0:
        return _until_closing_brace(text, start + len(BOXED))
    after_hashes = _AFTER_HASHES.findall(text)
    return after_hashes[-1] if after_hashes else None


def _until_closing_brace(text: str, start: int) -> str:
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start:]


def parse_expression(expression: str) -> list[Any]:
    r"""An expression that is known to be the whole answer, as Math-Verify's candidates.

    Accepts LaTeX with or without `$`, and numbers followed by a unit in words. Words alone are
    compared as words: LaTeX would read them as a product of letters, equal to their anagrams.
    Empty when there is nothing to parse.
    """
    expression = expression.strip().strip("$").rstrip(".").strip()
    if _WORDS.fullmatch(expression):
        return [expression.casefold()]
    unit = _NUMBER_WITH_UNIT.fullmatch(expression)
    if unit and not _NOT_UNITS.search(expression):
        expression = unit["number"]
    return _parse(f"{BOXED}{expression}}}")


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    _silence_math_verify()
    return parse(text, fallback_mode="no_fallback", parsing_timeout=None)


def is_equivalent(reference: list[Any], answer: list[Any]) -> bool:
    """Whether any candidate of `answer` equals one of `reference`; not symmetric.

    Two expressions that sympy cannot compare are not equal: the completion chose its form.
    """
    from math_verify import verify

    _silence_math_verify()
    return verify(reference, answer, timeout_seconds=None)


def _silence_math_verify() -> None:
    # It warns on every process's first call that its time limit is off, which is our intent.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
