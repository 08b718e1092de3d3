"""Domain `chain`: sums of one-digit terms whose running total never leaves 0..20.

The demo's task, generated: `5-5+2=` is answered `<think>5-5=0\\n0+2=2</think>2`. Its level is the
number of terms. A question is held out for evaluation iff `crc32(question) % 8 == 0`, so training
and evaluation cannot share one whatever the seeds were.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compass.gym.judgement import NEVER_CLOSED, Judgement, missing_answer, no_verdict
from compass.types import THINK_END, THINK_START, Prompt

MAX_TOTAL = 20
HELD_OUT_MODULUS = 8
_OPEN, _CLOSE = THINK_START, THINK_END


def is_held_out(question: str) -> bool:
    """Whether a generated question belongs to evaluation: no seed moves it."""
    return zlib.crc32(question.encode()) % HELD_OUT_MODULUS == 0


@dataclass(frozen=True, kw_only=True)
class ChainProblem:
    """One question with its running totals."""

    question: str
    """`5-5+2=`."""
    steps: tuple[str, ...]
    """`5-5=0`, `0+2=2`: one line for each operator; `5=5` when there is none."""
    answer: int
    level: int
    """Number of terms."""

    @property
    def held_out(self) -> bool:
        """Whether the question belongs to evaluation."""
        return is_held_out(self.question)

    @property
    def worked(self) -> str:
        """A demonstration that thinks first."""
        return f"{_OPEN}" + "\n".join(self.steps) + f"{_CLOSE}{self.answer}"

    @property
    def terse(self) -> str:
        """A demonstration that answers right without thinking."""
        return f"{_OPEN}{_CLOSE}{self.answer}"


def draw_problem(rng: random.Random, level: int) -> ChainProblem:
    """A problem of `level` terms, each 1..9; an operator is redrawn until the total fits."""
    total = rng.randint(1, 9)
    question, steps = str(total), []
    for _ in range(level - 1):
        term = rng.randint(1, 9)
        sign = rng.choice((1, -1))
        if not 0 <= total + sign * term <= MAX_TOTAL:
            sign = -sign  # one of the two always fits: total + 9 > 20 means total > 11
        written = f"{'+' if sign > 0 else '-'}{term}"
        steps.append(f"{total}{written}={total + sign * term}")
        question, total = question + written, total + sign * term
    return ChainProblem(
        question=f"{question}=",
        steps=tuple(steps) or (f"{total}={total}",),
        answer=total,
        level=level,
    )


def draw_from_side(rng: random.Random, level: int, *, held_out: bool) -> ChainProblem:
    """A problem from one side of the split; every level has questions on both."""
    while True:
        problem = draw_problem(rng, level)
        if problem.held_out == held_out:
            return problem


_MAX_REPEATS = 100
"""Known questions in a row after which a level counts as exhausted; level 2 has 126 in all,
level 4 over 20,000."""


def draw_problems(
    rng: random.Random,
    level_weights: Mapping[int, float],
    *,
    held_out: bool,
    distinct: bool,
) -> Iterator[ChainProblem]:
    """Problems of one side of the split without end, levels drawn by weight.

    A question comes back only when its level has no new ones to find. With `distinct` such a
    level is left out from then on instead, and the iterator ends when no level remains.
    """
    weights = dict(level_weights)
    seen: set[str] = set()
    while weights:
        level = rng.choices(list(weights), weights=list(weights.values()))[0]
        draws = (draw_from_side(rng, level, held_out=held_out) for _ in range(_MAX_REPEATS))
        problem = next((draw for draw in draws if draw.question not in seen), None)
        if problem is None and distinct:
            del weights[level]
            continue
        problem = problem or draw_from_side(rng, level, held_out=held_out)
        seen.add(problem.question)
        yield problem


def judge(
    prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
) -> Judgement:
    """1 iff the model stopped by itself, opened with `<think>`, closed it once, and is right.

    Where the prompt opened it (`thinking_open`) the completion goes on from there. `completion`
    has lost its stop token; text around the answer other than white space is wrong.
    Breakdown: `thought` is 1 when the completion holds any thinking, right or not.
    """
    unjudgeable = check(prompt)
    if unjudgeable is not None:
        return no_verdict(f"no reference answer: {unjudgeable}")
    if thinking_open:
        completion = _OPEN + completion
    thinking, _, answer = completion.removeprefix(_OPEN).partition(_CLOSE)
    well_formed = completion.startswith(_OPEN) and completion.count(_CLOSE) == 1
    thought = well_formed and bool(thinking.strip())
    reason = ""
    if not finished:
        reason = "cut off before the stop token"
    elif _CLOSE not in completion and completion.startswith(_OPEN):
        reason = NEVER_CLOSED
    elif not well_formed:
        reason = "not <think>...</think>answer"
    right = not reason and answer.strip() == prompt.answer
    return Judgement(
        verdict=float(right),
        answer=None if reason else answer.strip() or None,
        reason=reason,
        breakdown={"thought": float(thought)},
    )


def check(prompt: Prompt) -> str | None:
    """Why no completion of the prompt can be judged: its answer is not an integer in digits."""
    if prompt.answer is None:
        return missing_answer(prompt)
    if not re.fullmatch(r"-?[0-9]+", prompt.answer):
        return f"needs an `answer` that is an integer in digits, not {prompt.answer!r}"
    return None
