"""Tables of boxed answers: what equals a reference, and what does not.

A line is `reference  ==  answer  |  answer` or, for wrong ones, `reference  !=  answer  |  answer`.
"""

from __future__ import annotations

from collections.abc import Iterator

from compass.gym.domains.math import judge
from compass.gym.judgement import Judgement
from compass.types import Prompt

RIGHT, WRONG, BETWEEN = "  ==  ", "  !=  ", "  |  "


def judged(reference: str | None, completion: str, *, finished: bool = True) -> Judgement:
    return judge(Prompt(id="p", messages=(), answer=reference), completion, finished)


def is_right(reference: str, completion: str) -> bool:
    judgement = judged(reference, completion)
    return judgement.valid and judgement.verdict == 1.0


def cases(table: str) -> Iterator[tuple[str, str, bool]]:
    for line in table.strip("\n").splitlines():
        sign = RIGHT if RIGHT in line else WRONG
        reference, _, answers = line.partition(sign)
        for answer in answers.split(BETWEEN):
            yield reference, answer.replace("<nothing>", ""), sign == RIGHT


def mistakes(table: str) -> list[tuple[str, str, bool]]:
    """The cases on which the verdict is not what the table says."""
    return [
        (reference, answer, right)
        for reference, answer, right in cases(table)
        if is_right(reference, f"so \\boxed{{{answer}}}") != right
    ]
