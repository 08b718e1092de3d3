"""Equal answers are judged equal however they are written; unequal ones are not."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compass.gym.domains.math import judge
from compass.gym.judgement import Judgement
from compass.types import Prompt

INTEGERS = st.integers(-(10**7), 10**7)


def judged(answer: str | None, completion: str) -> Judgement:
    prompt = Prompt(id="p", messages=({"role": "user", "content": "?"},), answer=answer)
    return judge(prompt, completion, True)


def verdict(answer: str, completion: str) -> float:
    judgement = judged(answer, completion)
    assert judgement.valid, judgement.reason
    return judgement.verdict


WAYS_TO_ANSWER = (
    "<think>so it must be that</think>The answer is {}.",
    "<think>7</think>\\boxed{{{}}}",
    "First 3, then 4.\n#### {}",
    "We get $x = {}$.",
    "**Answer: {}**",
    "That makes 12 and 13, so \\(\\boxed{{{}}}\\) in all.",
)


@pytest.mark.parametrize("template", WAYS_TO_ANSWER)
@settings(max_examples=20, deadline=None)
@given(value=INTEGERS, other=INTEGERS)
def test_integer_is_found_and_compared(template: str, value: int, other: int) -> None:
    assume(value != other)
    assert verdict(str(value), template.format(value)) == 1.0
    assert verdict(str(value), template.format(other)) == 0.0


@settings(max_examples=30, deadline=None)
@given(value=st.integers(1000, 10**9))
def test_thousands_separators_do_not_matter(value: int) -> None:
    for written in (str(value), f"{value:,}", f"{value}.0", f"\\${value:,}", f"{value:,} dollars"):
        assert verdict(str(value), f"\\boxed{{{written}}}") == 1.0
        assert verdict(f"{value:,}", f"so\n#### {written}") == 1.0


@settings(max_examples=40, deadline=None)
@given(
    numerator=st.integers(1, 400),
    denominator=st.sampled_from([2, 4, 5, 8, 10, 20]),
    nudge=st.integers(1, 9),
)
def test_fraction_equals_its_decimal_and_its_percentage(
    numerator: int, denominator: int, nudge: int
) -> None:
    value = Fraction(numerator, denominator)
    decimal, percent = f"{float(value):g}", f"{float(value * 100):g}"
    forms = (
        f"{numerator}/{denominator}",
        f"\\frac{{{numerator}}}{{{denominator}}}",
        decimal,
        f"{percent}\\%",
    )
    for answer in forms:
        for written in forms:
            assert verdict(answer, f"\\boxed{{{written}}}") == 1.0
        assert verdict(answer, f"\\boxed{{{numerator + nudge}/{denominator}}}") == 0.0


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("5", "\\boxed{5 apples}"),
        ("5", "\\boxed{5\\text{ cm}}"),
        ("5 apples", "So she has 5 apples left."),
        ("18", "#### $18.00"),
        ("5", "\\boxed{x=5}"),
        ("7\\frac{1}{2}", "\\boxed{7.5}"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}"),
        ("1,2", "\\boxed{2, 1}"),
        ("\\frac{\\pi}{2}", "\\boxed{\\frac{1}{2}\\pi}"),
        ("yes", "\\boxed{Yes}"),
        ("B", "\\boxed{\\text{B}}"),
        ("$\\sqrt{2}$", "thus $\\sqrt{2}$"),
        ("42", "\\boxed{1} no wait, \\boxed{42}"),
        ("42", "\\boxed{\\frac{84}{2}} and so on, {unbalanced"),
    ],
)
def test_equivalent_forms_are_right(answer: str, completion: str) -> None:
    assert verdict(answer, completion) == 1.0


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("5", "\\boxed{6 apples}"),
        ("5", "\\boxed{-5}"),
        ("3", "\\boxed{3\\pi}"),
        ("3 pi", "\\boxed{3}"),
        ("0.333", "\\boxed{1/3}"),
        ("listen", "\\boxed{silent}"),
        ("3", "\\boxed{3, 4}"),
        ("42", "\\boxed{42} no wait, \\boxed{1}"),
        ("42", "\\boxed{}"),
        ("42", "it is forty-two"),
        ("42", ""),
    ],
)
def test_other_answers_are_wrong(answer: str, completion: str) -> None:
    assert verdict(answer, completion) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "<think>it is \\boxed{42}",
        "<think>it is \\boxed{42}</think>",
        "<think>42</think>I do not know.",
        "<think>42</think>#### 41",
        "so \\boxed{42}</think>that was my thinking",
    ],
)
def test_answer_inside_the_thinking_does_not_count(completion: str) -> None:
    assert verdict("42", completion) == 0.0


@pytest.mark.parametrize("answer", [None, "", "???", "{"])
def test_reference_that_cannot_be_used_is_no_verdict(answer: str | None) -> None:
    judgement = judged(answer, "\\boxed{42}")
    assert not judgement.valid
    assert "reference answer" in judgement.reason


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Let me see. 2+3 = 5. Wait, maybe", 0.0),
        ("It is \\boxed{5}", 0.0),
        ("#### 5", 0.0),
        ("2+3 = 5</think>So \\boxed{5}", 1.0),
        ("2+3 = 6</think>5", 1.0),
        ("5</think>\\boxed{6}", 0.0),
        ("hm</think>\\boxed{5} <think>or", 0.0),
    ],
)
def test_thinking_that_the_prompt_opened_and_nobody_closed_is_no_answer(
    completion: str, expected: float
) -> None:
    prompt = Prompt(id="p", messages=(), answer="5")
    judgement = judge(prompt, completion, False, thinking_open=True)
    assert (judgement.verdict, judgement.valid) == (expected, True)
    if "</think>" not in completion:
        assert "never closed" in judgement.reason
