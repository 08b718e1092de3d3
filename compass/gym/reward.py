"""Compass-Gym's front door: one completion in, one `Score` out, dispatched by domain.

Training (`compass.gym.pool.pool`) and `tools/score.py` both call `score`. A new domain is one line
in `DOMAINS` and a module with the functions `judge` and `check`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from compass.errors import UserError
from compass.gym.choice import options
from compass.gym.code.suite import FIELDS
from compass.gym.domains import chain, choice, code, instructions, math, reasoning, tools, verifiers
from compass.gym.instructions import constraint
from compass.gym.judgement import Check, Judge
from compass.types import Prompt, Score

MAX_ANSWER = 200
"""Characters of a completion's answer that are kept, with their number."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One kind of task and how it is verified."""

    judge: Judge
    check: Check
    reads: tuple[str, ...] = ()
    """Fields of `Prompt.extra` that `judge` and `check` read."""
    library: str | None = None
    """Heavy module that `judge` imports where it is used; workers import it before they start."""
    sandboxed: bool = False
    """`judge` runs programs: workers open a `compass.gym.domains.code.workshop` before they start,
    and `gym.sandbox.program_seconds` is added to their time limit."""


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        "math": Domain(
            judge=math.judge, check=math.check, library="compass.gym.mathematics.verdict"
        ),
        "reasoning_gym": Domain(
            judge=reasoning.judge,
            check=reasoning.check,
            reads=("task", "entry"),
            library="reasoning_gym",
        ),
        "chain": Domain(judge=chain.judge, check=chain.check),
        "code": Domain(judge=code.judge, check=code.check, reads=FIELDS, sandboxed=True),
        "choice": Domain(judge=choice.judge, check=choice.check, reads=options.FIELDS),
        "instructions": Domain(
            judge=instructions.judge,
            check=instructions.check,
            reads=constraint.FIELDS,
            library="compass.gym.instructions.profiles",
        ),
        "tools": Domain(judge=tools.judge, check=tools.check, reads=tools.FIELDS),
        "verifiers": Domain(
            judge=verifiers.judge,
            check=verifiers.check,
            reads=verifiers.FIELDS,
            library="compass.gym.tasksets",
        ),
    }
)


def domain_named(name: str) -> Domain:
    """The domain; `UserError` naming the supported ones when there is none of that name."""
    if name not in DOMAINS:
        raise UserError(f"unknown domain {name!r}; choose one of {', '.join(sorted(DOMAINS))}")
    return DOMAINS[name]


def libraries_of(domains: Iterable[str]) -> tuple[str, ...]:
    """Modules to import before scoring these domains, so that no time limit pays for it."""
    libraries = {domain_named(name).library for name in domains}
    return tuple(sorted(library for library in libraries if library))


def import_libraries(libraries: Iterable[str]) -> None:
    """Import what `libraries_of` named."""
    for library in libraries:
        importlib.import_module(library)


def score(prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False) -> Score:
    """Judge one completion by the prompt's domain and time it.

    `completion` is the text the model wrote without its stop token; `finished` says whether it
    stopped by itself (false when it ran into the length limit), `thinking_open` whether its
    prompt ends inside `<think>`. Exceptions of the verifier pass
    through: in a pool they cost the worker's job, not the run.
    """
    started = time.perf_counter()
    judgement = domain_named(prompt.domain).judge(prompt, completion, finished, thinking_open)
    return Score(
        verdict=judgement.verdict,
        reward=judgement.verdict if judgement.reward is None else judgement.reward,
        valid=judgement.valid,
        reason=judgement.reason,
        breakdown=judgement.breakdown,
        seconds=time.perf_counter() - started,
        answer=_one_line(judgement.answer),
    )


def _one_line(answer: str | None) -> str | None:
    if answer is None or len(answer) <= MAX_ANSWER:
        return answer
    return f"{answer[:MAX_ANSWER]}... ({len(answer)} characters)"


def broken(reason: str, seconds: float) -> Score:
    """The score of a completion whose verifier never answered: it is not a zero."""
    return Score(verdict=0.0, reward=0.0, valid=False, reason=reason, breakdown={}, seconds=seconds)
