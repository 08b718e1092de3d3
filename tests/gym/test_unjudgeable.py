"""Prompts that no verdict can be reached on are found before a run, each distinct answer once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.unjudgeable import unjudgeable
from compass.types import Prompt

CONFIG = PoolConfig(num_workers=1, timeout_seconds=3.0)
HANGS = r"\int_0^{\infty} \frac{\sin(x^2) e^{-x^3}}{1+x^4} dx"


def prompt_of(name: str, answer: str | None, domain: str = "math", **extra: Any) -> Prompt:
    return Prompt(id=name, messages=(), answer=answer, domain=domain, extra=extra)


def test_the_field_that_a_domain_needs_is_named() -> None:
    entry = {"question": "?", "answer": "4", "metadata": {"source_dataset": "leg_counting"}}
    prompts = [
        prompt_of("fine", "3 1/2"),
        prompt_of("none", None),
        prompt_of("renamed", None, final_answer="4"),
        prompt_of("null", None, final_answer=None),
        prompt_of("unread", "12/5 8"),
        prompt_of("total", "11", "chain"),
        prompt_of("no total", "11 apples", "chain"),
        prompt_of("task", None, "reasoning_gym", task="leg_counting", entry=entry | {"answer": 4}),
        prompt_of("no task", "4", "reasoning_gym"),
        prompt_of("unknown task", "4", "reasoning_gym", task="poetry", entry=entry),
    ]
    reasons = unjudgeable(prompts, CONFIG)
    assert reasons.pop("renamed") == "needs `answer`: has final_answer; rename it to answer"
    assert (
        reasons.pop("none")
        == reasons.pop("null")
        == ("needs `answer`: there is none, or it is null")
    )
    assert "'12/5 8' cannot be" in reasons.pop("unread")
    assert "integer in digits, not '11 apples'" in reasons.pop("no total")
    assert "`task` and `entry`" in reasons.pop("no task")
    assert "no 'poetry'" in reasons.pop("unknown task")
    assert not reasons.keys() - {"task"}  # as the task scores its own answer


def test_an_answer_that_hangs_the_reader_is_a_reason_and_holds_nothing_up() -> None:
    reasons = unjudgeable([prompt_of("hangs", HANGS), prompt_of("fine", "7")], CONFIG)
    assert reasons == {"hangs": "timeout after 3 s"}


def test_each_distinct_answer_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str | None] = Counter()
    submit = VerifierPool.submit_text

    def counted(pool: VerifierPool, key: Any, prompt: Prompt, text: str, **flags: Any) -> None:
        asked[prompt.answer] += 1
        submit(pool, key, prompt, text, **flags)

    monkeypatch.setattr(VerifierPool, "submit_text", counted)
    prompts = [prompt_of(str(i), "???" if i % 5 == 0 else str(i % 5), level=i) for i in range(500)]
    reasons = unjudgeable(prompts, CONFIG)
    assert set(reasons) == {str(i) for i in range(0, 500, 5)}
    assert asked == dict.fromkeys(["???", "1", "2", "3", "4"], 1)


def test_no_prompts_start_no_process() -> None:
    assert unjudgeable([], CONFIG) == {}
