"""Verdicts per second, and programs in full isolation against an interpreter for each test.

200 programs of four kinds, with ten tests each; every other one is wrong on one of them, each of
the ten equally often. Ours is the verifier pool at `gym.sandbox.level` full, started: every program
in a sandbox of its own, its tests forks in it. The peer is what most graders do: `python -I -S` for
each test, as many at a time as there are workers, with no isolation at all. Both stop at a
program's first test that fails and must agree on every program. `ratio` is the peer's wall time
over ours, the median of rounds that alternate. Beside it: `ratio_no_imports`, where all programs
import `sys` alone (one of the four kinds does; the others import what programs of contests and of
language models do), and `ratio_one_test`, where each program has one test.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.errors import UserError
from compass.gym.domains.reasoning import make_prompts
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.types import Prompt

LIMIT = 3.5
"""Least ratio that counts as good enough, on two cores."""
_TEST_SECONDS = 4.0
_MOST_VALUES = 400

_PLAIN = ("import sys", "    return sum(v * v for v in values) % 1000007")
_KINDS = (
    _PLAIN,
    (
        "import sys\nfrom collections import Counter, defaultdict\nfrom typing import List",
        "    return sum(n * v for v, n in Counter(values).items() if n > 1)",
    ),
    (
        "import heapq, math, sys",
        "    return sum(heapq.nsmallest(3, values)) + math.gcd(*values)",
    ),
    (
        "import sys\nfrom bisect import bisect_left\nfrom functools import lru_cache",
        "    tails = []\n"
        "    for v in values:\n"
        "        tails[(i := bisect_left(tails, v)) : i + 1] = [v]\n"
        "    return len(tails)",
    ),
)
"""Imports and body of programs such as answer questions of programming contests."""
_PROGRAM = """\
{imports}

def solve(values):
{body}

def main():
    values = list(map(int, sys.stdin.read().split()))
    answer = solve(values)
    if len(values) == {wrong_at}:
        answer += 1
    print(answer)

main()
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py gym`."""

    json: bool = False
    """End with one line of JSON."""
    num_programs: int = 200
    """Programs, half of them wrong."""
    num_tests: int = 10
    """Tests of each."""
    num_verdicts: int = 400
    """Completions of each domain."""
    num_workers: int = 2
    """Verifier processes, and interpreters of the peer at a time."""
    repeats: int = 3
    """Rounds."""

    def __post_init__(self) -> None:
        for name in ("num_programs", "num_tests", "num_verdicts", "num_workers", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A program and its tests: pairs of stdin and stdout."""

    program: str
    tests: tuple[tuple[str, str], ...]
    right: bool

    @property
    def prompt(self) -> Prompt:
        """As a row of a prompt file."""
        tests = [{"stdin": given, "stdout": wanted} for given, wanted in self.tests]
        return Prompt(id="p", messages=(), domain="code", extra={"tests": tests})


def make_task(index: int, num_tests: int, kinds: Sequence[tuple[str, str]] = _KINDS) -> Task:
    """Program number `index`; odd ones are wrong, on a test that moves from one to the next."""
    imports, body = kinds[index // 2 % len(kinds)]
    names: dict[str, Any] = {}
    exec(f"{imports}\n\ndef solve(values):\n{body}", names)
    lengths = [1 + test * _MOST_VALUES // num_tests for test in range(num_tests)]
    inputs = [[(i * 7919 + length) % 101 for i in range(length)] for length in lengths]
    right = index % 2 == 0
    wrong_at = 0 if right else lengths[index // 2 % num_tests]
    return Task(
        program=_PROGRAM.format(imports=imports, body=body, wrong_at=wrong_at),
        tests=tuple((" ".join(map(str, v)), str(names["solve"](v))) for v in inputs),
        right=right,
    )


def passes(task: Task) -> bool:
    """By an interpreter for each test."""
    for given, wanted in task.tests:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", task.program],
            input=given,
            capture_output=True,
            text=True,
            timeout=_TEST_SECONDS,
        )
        if ended.returncode or ended.stdout.split() != wanted.split():
            return False
    return True


def time_peer(tasks: Sequence[Task], num_workers: int) -> float:
    """Wall seconds of an interpreter for each test."""
    with ThreadPoolExecutor(num_workers) as threads:
        started = time.perf_counter()
        verdicts = list(threads.map(passes, tasks))
    assert verdicts == [task.right for task in tasks], "the peer is wrong about a program"
    return time.perf_counter() - started


def time_ours(pool: VerifierPool, tasks: Sequence[Task]) -> float:
    """Wall seconds of the pool."""
    started = time.perf_counter()
    for index, task in enumerate(tasks):
        pool.submit_text(index, task.prompt, f"```python\n{task.program}```", finished=True)
    scores = dict(pool.drain())
    seconds = time.perf_counter() - started
    for index, task in enumerate(tasks):
        score = scores[index]
        assert (score.valid, score.verdict) == (True, task.right), f"wrong verdict: {score}"
    return seconds


def _math(number: int) -> Iterator[tuple[Prompt, str]]:
    for i in range(number):
        prompt = Prompt(id="p", messages=(), answer=rf"\frac{{{i}}}{{7}}", domain="math")
        yield prompt, rf"<think>hm</think>so it is \boxed{{{i}/7}}"


def _reasoning(number: int) -> Iterator[tuple[Prompt, str]]:
    for prompt in make_prompts("leg_counting", number, 0):
        yield prompt, f"<answer>{prompt.answer}</answer>"


def _chain(number: int) -> Iterator[tuple[Prompt, str]]:
    for i in range(number):
        yield Prompt(id="p", messages=(), answer=f"{i}", domain="chain"), f"<think>a</think>{i}"


def _code(number: int) -> Iterator[tuple[Prompt, str]]:
    test = {"code": "assert double(21) == 42\nassert double('a') == 'aa'"}
    prompt = Prompt(id="p", messages=(), domain="code", extra={"tests": [test]})
    for i in range(number):
        yield prompt, f"```python\n# {i}\ndef double(x):\n    return 2 * x\n```"


def _instructions(number: int) -> Iterator[tuple[Prompt, str]]:
    constraints = {
        "instruction_id_list": ["punctuation:no_comma", "language:response_language"],
        "kwargs": [{}, {"language": "en"}],
    }
    prompt = Prompt(id="p", messages=(), domain="instructions", extra=constraints)
    for i in range(number):
        yield prompt, f"<think>hm</think>There are {i} apples in the garden behind the house."


def _choice(number: int) -> Iterator[tuple[Prompt, str]]:
    options = ["at dawn", "at noon", "at night"]
    prompt = Prompt(id="p", messages=(), answer="B", domain="choice", extra={"options": options})
    for i in range(number):
        yield prompt, f"<think>hm {i}</think>It rose {i} times. So the answer is (B) at noon."


def _tools(number: int) -> Iterator[tuple[Prompt, str]]:
    parameters = {"properties": {"of": {"type": "integer"}}, "required": ["of"]}
    tools = [{"name": "double", "parameters": parameters}]
    for i in range(number):
        call = {"name": "double", "arguments": {"of": i}}
        extra = {"tools": tools, "calls": [call]}
        prompt = Prompt(id="p", messages=(), domain="tools", extra=extra)
        yield prompt, f"<think>hm</think><tool_call>{json.dumps(call)}</tool_call>"


SAMPLES: Mapping[str, Callable[[int], Iterator[tuple[Prompt, str]]]] = MappingProxyType(
    {
        "math": _math,
        "reasoning_gym": _reasoning,
        "chain": _chain,
        "code": _code,
        "instructions": _instructions,
        "tools": _tools,
        "choice": _choice,
    }
)
"""Right completions of each domain, all different. That of `code` is judged by test code, which
takes a second sandbox."""


def verdicts_per_second(domain: str, number: int, num_workers: int) -> float:
    """Of a pool that is started."""
    samples = list(SAMPLES[domain](number))
    with VerifierPool(PoolConfig(num_workers=num_workers), domains=[domain]) as pool:
        started = time.perf_counter()
        for index, (prompt, completion) in enumerate(samples):
            pool.submit_text(index, prompt, completion, finished=True)
        scores = pool.drain()
        seconds = time.perf_counter() - started
    assert all(score.verdict == 1 for _, score in scores), f"a right answer of {domain} is not"
    return number / seconds


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print the tables, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    rates = {name: verdicts_per_second(name, cfg.num_verdicts, cfg.num_workers) for name in SAMPLES}
    programs = range(cfg.num_programs)
    sets = {
        f"{cfg.num_tests}": [make_task(index, cfg.num_tests) for index in programs],
        f"{cfg.num_tests}, no imports": [
            make_task(index, cfg.num_tests, [_PLAIN]) for index in programs
        ],
        "1": [make_task(index, 1) for index in programs],
    }
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    with VerifierPool(PoolConfig(num_workers=cfg.num_workers), domains=["code"]) as pool:
        for _ in range(cfg.repeats):
            for name, tasks in sets.items():
                rounds[name].append((time_ours(pool, tasks), time_peer(tasks, cfg.num_workers)))
    ratios = {
        name: statistics.median(peer / ours for ours, peer in pairs)
        for name, pairs in rounds.items()
    }
    many, plain, one = ratios.values()
    _print(cfg, rates, rounds, ratios)
    if not cfg.json:
        return None
    return {
        "ratio": many,
        "limit": LIMIT,
        "ratio_no_imports": plain,
        "ratio_one_test": one,
        "verdicts_per_second": rates,
        "wall_seconds": rounds,
        "cores": os.cpu_count(),
    }


def _print(
    cfg: Config,
    rates: Mapping[str, float],
    rounds: Mapping[str, Sequence[tuple[float, float]]],
    ratios: Mapping[str, float],
) -> None:
    console = Console()
    table = Table("domain", "verdicts/s", title=f"{cfg.num_workers} verifier processes")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}")
    console.print(table)
    table = Table("tests", "ours, s", "python -I -S for each test, s", "ratio")
    table.title = f"{cfg.num_programs} programs, half of them wrong; wall seconds, medians"
    for name, pairs in rounds.items():
        ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        table.add_row(name, f"{ours:.2f}", f"{peer:.2f}", f"{ratios[name]:.2f}")
    console.print(table)
    ratio = ratios[f"{cfg.num_tests}"]
    console.print(f"ratio {ratio:.2f} (limit {LIMIT}: {'met' if ratio >= LIMIT else 'MISSED'})")
