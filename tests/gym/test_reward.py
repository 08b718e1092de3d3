"""`score` dispatches by domain, and the worker side stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compass.errors import UserError
from compass.gym.domains.code import CodeConfig, workshop
from compass.gym.domains.reasoning import make_prompts
from compass.gym.reward import DOMAINS, broken, domain_named, libraries_of, score
from compass.gym.sandbox.supply import SandboxConfig
from compass.types import Prompt


def test_each_domain_reaches_its_own_verifier() -> None:
    [reasoning] = make_prompts("leg_counting", 1, 0)
    math = Prompt(id="m", messages=(), answer="1/2", domain="math")
    chain = Prompt(id="c", messages=(), answer="3", domain="chain")
    test = {"stdin": "", "stdout": "1"}
    code = Prompt(id="p", messages=(), domain="code", extra={"tests": [test]})
    followed = {"followed": 1.0, "followed_loosely": 1.0, "all_loosely": 1.0}
    constraint = {"instruction_id_list": ["punctuation:no_comma"]}
    instructions = Prompt(id="i", messages=(), domain="instructions", extra=constraint)
    offered = {"tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}]}
    call = {"name": "f", "arguments": {"a": 1}}
    tools = Prompt(id="t", messages=(), domain="tools", extra=offered | {"calls": [call]})
    asked = {"options": ["one", "two"]}
    choice = Prompt(id="o", messages=(), answer="B", domain="choice", extra=asked)
    cases = [
        (choice, "<think>A?</think>The answer is B.", {}),
        (tools, "<think>f?</think>[f(a=1)]", {"calls_matched": 1.0}),
        (math, "\\boxed{0.5}", {}),
        (chain, "<think>1+2=3</think>3", {"thought": 1.0}),
        (reasoning, str(reasoning.answer), {"raw_score": 1.0}),
        (code, "```\nprint(1)\n```", {"tests_passed": 1.0}),
        (instructions, "<think>a, b</think>So it is.", followed),
    ]
    assert {prompt.domain for prompt, _, _ in cases} == set(DOMAINS) - {"verifiers"}
    with workshop(CodeConfig(), SandboxConfig()):
        for prompt, completion, breakdown in cases:
            scored = score(prompt, completion, True)
            assert (scored.verdict, scored.valid, dict(scored.breakdown)) == (1.0, True, breakdown)
            assert scored.seconds > 0


def test_unknown_domain_names_the_supported_ones() -> None:
    with pytest.raises(UserError, match="'poetry'; choose one of chain, choice, code, "):
        domain_named("poetry")


def test_libraries_are_those_of_the_domains_asked_for() -> None:
    assert libraries_of(["chain"]) == ()
    assert libraries_of(["math", "chain", "reasoning_gym"]) == (
        "compass.gym.mathematics.verdict",
        "reasoning_gym",
    )


def test_broken_verifier_is_not_a_zero() -> None:
    assert broken("timeout after 5 s", 5.0).valid is False


def test_gym_imports_neither_torch_nor_a_verifier_library() -> None:
    code = (
        "import sys, compass.gym.pool.pool, compass.gym.datasets, compass.gym.pool.worker; "
        "print(sorted({'torch', 'sympy', 'reasoning_gym', 'langdetect'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr
