"""The domain `instructions`: all or nothing as the verdict, the shares beside it."""

from __future__ import annotations

from compass.gym.domains.instructions import check, judge
from compass.types import Prompt

PROMPT = Prompt(
    id="p",
    messages=(),
    domain="instructions",
    extra={
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "The end."}],
    },
)


def test_the_verdict_is_all_or_nothing_and_strict() -> None:
    right = judge(PROMPT, "<think>a, b</think>So it was. The end.", True)
    assert (right.verdict, right.reason) == (1.0, "")
    assert right.breakdown == {"followed": 1.0, "followed_loosely": 1.0, "all_loosely": 1.0}
    half = judge(PROMPT, "So, it was. The end.", True)
    assert (half.verdict, half.valid) == (0.0, True)
    assert half.reason == "not followed: punctuation:no_comma"
    assert half.breakdown == {"followed": 0.5, "followed_loosely": 0.5, "all_loosely": 0.0}


def test_the_loose_rule_forgives_a_first_or_last_line_and_asterisks() -> None:
    loose = judge(PROMPT, "Sure, here it is:\nSo it was. **The end.**", True)
    assert (loose.verdict, loose.breakdown["all_loosely"]) == (0.0, 1.0)
    assert loose.breakdown["followed"] == 0.0


def test_thinking_that_never_ends_is_wrong() -> None:
    judged = judge(PROMPT, "So it was. The end.", True, thinking_open=True)
    assert (judged.verdict, judged.valid) == (0.0, True)


def test_a_row_without_constraints_cannot_be_judged() -> None:
    bare = Prompt(id="p", messages=(), domain="instructions", answer="42")
    assert check(bare) == "needs `instruction_id_list` and `kwargs`"
    assert not judge(bare, "a", True).valid
    assert check(PROMPT) is None
