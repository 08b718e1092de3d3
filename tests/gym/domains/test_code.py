"""Programs are judged by their tests, and nothing but right answers passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from compass.errors import UserError
from compass.gym.domains.code import CodeConfig, check, judge, workshop
from compass.gym.judgement import Judgement
from compass.gym.sandbox.supply import SandboxConfig
from compass.types import Prompt

SANDBOX = SandboxConfig(test_seconds=2.0)


@pytest.fixture(scope="module", autouse=True)
def _workshop() -> Iterator[None]:
    with workshop(CodeConfig(), SANDBOX):
        yield


def judged(program: str, **row: Any) -> Judgement:
    prompt = Prompt(id="p", messages=(), domain="code", extra=row)
    return judge(prompt, f"<think>so</think>It is:\n```python\n{program}\n```\n", True)


def inputs(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"tests": [{"stdin": given, "stdout": wanted} for given, wanted in pairs]}


def code(*tests: str) -> dict[str, Any]:
    return {"tests": [{"code": test} for test in tests]}


FIB = (
    "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"
)


@pytest.mark.parametrize(
    ("program", "row"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", inputs(("1 2", "3"), ("3 4\n", "7\n"))),
        ("print('a ')\nprint('b\\n')", inputs(("", "a\nb"))),
        ("import sys\nprint(sum(map(int, sys.stdin)))", inputs(("1\n2\n3", "6"))),
        ("print(len(open(0).read()))", inputs(("é" * 100_000, "100000"))),
        ("print('x' * 5_000_000)", inputs(("", "x" * 5_000_000))),
        ("import sys\nprint(1)\nsys.exit()", inputs(("", "1"))),
        ("import atexit\natexit.register(print, 1)", inputs(("", "1"))),
        ("import threading\nthreading.Thread(target=lambda: print(1)).start()", inputs(("", "1"))),
        ("if __name__ == '__main__':\n    print(1)", inputs(("", "1"))),
        ("import numpy\nprint(numpy.arange(4).sum())", inputs(("", "6"))),
        ("open('x', 'w').write('1')\nprint(open('x').read())", inputs(("", "1"))),
        (FIB, code("assert fib(10) == 55", "for i in range(20): assert fib(i + 2) > fib(i)")),
        (FIB, code("assert len(str(fib(30_000))) == 6270", "assert fib(300) > 10**62")),
        ("def f(x): return (x, {x: {1.5}}, b'a', None)", code("assert f(1)[1] == {1: {1.5}}")),
        ("def f(**x): return x", code("assert f(a=float('inf')) == {'a': float('inf')}")),
        (
            "class Odd(ValueError): ...\ndef f(x): raise Odd('odd')",
            code("try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'odd'"),
        ),
        ("def sum(a, b): return a * b", {"test_list": ["assert sum(3, 4) == 12"]}),
        (FIB, {"test": "def check(candidate): assert candidate(3) == 2", "entry_point": "fib"}),
        (
            "class Solution:\n    def add(self, a, b):\n        return (a + b,)",
            {"input_output": {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "add"}},
        ),
        (
            "class Solution:\n    def add(self, a, b):\n        return a + b",
            {"test": "def check(c): assert c(1, 2) == 3", "entry_point": "Solution().add"},
        ),
    ],
)
def test_a_right_program_passes(program: str, row: dict[str, Any]) -> None:
    judgement = judged(program, **row)
    assert (judgement.verdict, judgement.valid, judgement.reason) == (1.0, True, "")


@pytest.mark.parametrize(
    ("program", "row", "reason"),
    [
        ("print(2)", inputs(("", "1")), "test 1 of 1: wrong output"),
        ("print(input())", inputs(("1", "1"), ("2", "1")), "test 2 of 2: wrong output"),
        ("print(' 1')", inputs(("", "1")), "wrong output"),
        ("print(1/0)", inputs(("", "1")), "ZeroDivisionError: division by zero"),
        ("print(1); exit(3)", inputs(("", "1")), "exit code 3"),
        ("import sys; print(1); sys.exit(3)", inputs(("", "1")), "exit code 3"),
        ("print(input(), input())", inputs(("1", "1")), "EOFError"),
        ("import nowhere", inputs(("", "1")), "ModuleNotFoundError: No module named 'nowhere'"),
        ("while True: pass", inputs(("", "1")), "out of time"),
        ("x = [0] * 10**10", inputs(("", "1")), "MemoryError"),
        ("def f(:", inputs(("", "1")), "SyntaxError"),
        ("def f(): return 1", code("assert f() == 2"), "AssertionError"),
        ("def g(): return 1", code("assert f() == 1"), "name 'f' is not defined"),
        ("f = 1", code("assert f() == 1"), "TypeError: 'int' object is not callable"),
        ("def f(): return f", code("assert f()"), "a result of type function"),
        ("def f(): raise KeyError('k')", code("assert f()"), "KeyError"),
        ("def f(x): x.append(1)", code("x = []\nf(x)\nassert x"), "AssertionError"),
    ],
)
def test_a_wrong_program_is_a_valid_zero_with_the_reason(
    program: str, row: dict[str, Any], reason: str
) -> None:
    judgement = judged(program, **row)
    assert (judgement.verdict, judgement.valid) == (0.0, True)
    assert reason in judgement.reason
    assert "\n" not in judgement.reason


def test_a_completion_without_a_program_is_a_valid_zero() -> None:
    prompt = Prompt(id="p", messages=(), domain="code", extra=inputs(("", "1")))
    assert judge(prompt, "```\nprint(1)\n```", True).verdict == 1
    for completion in (
        "print(1)",
        "<think>```\nprint(1)\n```</think>",
        "<think>```\nprint(1)\n```",
    ):
        judgement = judge(prompt, completion, True)
        assert (judgement.verdict, judgement.valid) == (0.0, True)
        assert judgement.reason


def test_tests_that_cannot_be_run_are_no_verdict_and_are_found_before() -> None:
    row = {"tests": [{"stdin": "1"}]}
    judgement = judged("print(1)", **row)
    assert not judgement.valid
    found = check(Prompt(id="p", messages=(), domain="code", extra=row))
    assert found is not None
    assert found in judgement.reason
    assert check(Prompt(id="p", messages=(), domain="code", extra=inputs(("", "")))) is None


def test_a_share_of_the_tests_can_count_and_a_test_that_hangs_costs_only_itself() -> None:
    program = "n = int(input())\nif n == 2: input()\nwhile n == 3: pass\nprint(n)"
    row = inputs(("1", "1"), ("3", "3"), ("2\n", "2"), ("4", "4"))
    with workshop(CodeConfig(grade="share"), SandboxConfig(test_seconds=0.5)):
        judgement = judged(program, **row)
    assert (judgement.verdict, judgement.reward) == (0.0, 0.5)
    assert judgement.reason == "test 2 of 4: out of time"
    assert judged("print(input())", **row).reward is None


def test_all_tests_together_have_a_limit() -> None:
    row = inputs(*[("", "1")] * 20)
    limits = SandboxConfig(test_seconds=1.0, program_seconds=1.5)
    with workshop(CodeConfig(grade="share"), limits):
        judgement = judged("import time\ntime.sleep(0.4)\nprint(1)", **row)
    assert judgement.reward is not None
    assert 0 < judgement.reward < 0.25


def test_a_test_sees_nothing_of_the_one_before() -> None:
    program = "import os, sys\nprint(os.path.exists('x.py'), 'x' in sys.modules)"
    program += "\nsys.modules['x'] = sys\n"
    assert judged(program, **inputs(("", "False False"), ("", "False False"))).verdict == 1


def test_limits_that_no_program_can_live_under_are_refused() -> None:
    with (
        pytest.raises(UserError, match="a small program that is right fails here"),
        workshop(CodeConfig(), SandboxConfig(memory_mb=1)),
    ):
        pass
