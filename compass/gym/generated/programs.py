"""Programs of two lines: read n, print a function of it. Judged by running them.

The careless demonstration forgets that what is read is text: it fails on every input.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from compass.gym.generated.task import Task

_FORMULAS: Mapping[str, Callable[[int, int, int], int]] = MappingProxyType(
    {
        "n*{a}+{b}": lambda n, a, b: n * a + b,
        "n*{a}-{b}": lambda n, a, b: n * a - b,
        "n%{a}+{b}": lambda n, a, b: n % a + b,
        "n//{a}+{b}": lambda n, a, b: n // a + b,
        "max(n,{b})*{a}": lambda n, a, b: max(n, b) * a,
        "min(n,{b})+{a}": lambda n, a, b: min(n, b) + a,
        "abs(n-{b})+{a}": lambda n, a, b: abs(n - b) + a,
    }
)
_INPUTS = (0, 7, 23, 50)


def draw_program(rng: random.Random) -> Task:
    """One task with four tests of standard input and output."""
    formula = rng.choice(sorted(_FORMULAS))
    a, b = rng.randint(2, 9), rng.randint(2, 49)
    expression = formula.format(a=a, b=b)
    tests = [{"stdin": f"{n}\n", "stdout": f"{_FORMULAS[formula](n, a, b)}\n"} for n in _INPUTS]
    return Task(
        question=f"Read n, print {expression}.",
        domain="code",
        careful=_fenced(f"n=int(input())\nprint({expression})"),
        careless=_fenced(f"n=input()\nprint({expression})"),
        extra={"tests": tests},
    )


def _fenced(program: str) -> str:
    return f"```python\n{program}\n```"
