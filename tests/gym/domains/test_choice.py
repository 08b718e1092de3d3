"""Multiple choice: options are asked in one form, and an answer names one by letter or text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from compass.errors import UserError
from compass.gym.datasets import load_prompts, save_prompts
from compass.gym.domains.choice import check, judge
from compass.types import Prompt

OPTIONS = ["It is heavier on Mars.", "It is lighter on Mars.", "It is the same.", "4"]


def prompt_of(answer: str | None = "C", options: Any = OPTIONS) -> Prompt:
    extra = {} if options is None else {"options": options}
    return Prompt(id="p", messages=(), domain="choice", answer=answer, extra=extra)


@pytest.mark.parametrize(
    "answer",
    [
        *("C", "c", "(C)", "**C**", "C.", "Option C", "C. It is the same.", "(C) It is the same"),
        *("C) because it must be", "It is the same.", "it is the same", "\\boxed{C}"),
        *("\\boxed{\\text{C}}", "\\boxed{C. It is the same}", "<answer>C</answer>", "#### C"),
        *("A is wrong. The answer is C.", "The correct answer is (C), not B.", "Answer: **C**"),
        "I would say A. No: the answer is option C because B is impossible.",
        "The answer is: it is the same.",
        "B? No.\n\nC",
        "Reasons.\nC. It is the same.",
        "Is A right? The answer is B.\nWait. The answer is C",
        *("答案是C。", "คำตอบคือ C", "คำตอบที่ถูกต้องคือ ข้อ C", "Jawabannya adalah C", "Đáp án là C."),
        "The answer is not A. The answer is C.",
        "The answer to a question with A long way to go is C.",
    ],
)
def test_the_right_option_is_recognised(answer: str) -> None:
    assert judge(prompt_of(), f"<think>A? B?</think>{answer}", True).verdict == 1
    for other in "ABD":
        assert judge(prompt_of(other), f"<think>A? B?</think>{answer}", True).verdict == 0


@pytest.mark.parametrize(
    "answer",
    [
        *("", "I do not know.", "A, B, C or D", "C and D", "The answer is C or D.", "E", "CC"),
        *(
            "\\boxed{B} and \\boxed{C}",
            "C. It is lighter on Mars.",
            "The answer is not C.",
            "\\boxed{E}",
        ),
        "A\nB\nC\nD\nall of them",
        "C is an option, but \\boxed{5}",
    ],
)
def test_an_answer_that_names_none_or_several_is_wrong(answer: str) -> None:
    judged = judge(prompt_of(), answer, True)
    assert (judged.verdict, judged.valid) == (0.0, True)


@pytest.mark.parametrize("reference", ["D", "4", "3", " d "])
def test_a_reference_is_a_letter_a_text_or_a_number_from_0(reference: str) -> None:
    assert judge(prompt_of(reference), "D", True).verdict == 1
    assert judge(prompt_of(reference), "4", True).verdict == 1


def test_no_answer_takes_long() -> None:
    for unit in ("A", "A. ", "answer ", "(", "* ", "the answer is A and ", "\\boxed{", "\n"):
        started = time.process_time()
        judge(prompt_of(), unit * (200_000 // len(unit)), True)
        assert time.process_time() - started < 2, unit


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (prompt_of(options=None), "needs `options`"),
        (prompt_of(options=["only one"]), "must be a list of 2 to 26 texts"),
        (prompt_of(answer=None), "needs `answer`"),
        (prompt_of(answer="E"), "one of its options: 'E' is not"),
    ],
)
def test_a_row_that_cannot_be_judged_says_why(prompt: Prompt, message: str) -> None:
    assert message in (check(prompt) or "")
    assert not judge(prompt, "C", True).valid


def read(tmp_path: Path, **row: Any) -> Prompt:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"id": "q", "problem": "Which?", "answer": "B", **row}))
    [prompt] = load_prompts(path, raw=row.get("raw", False))
    return prompt


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["one", "two"]},
        {"choices": ["one", "two"]},
        {"options": '["one", "two"]'},
        {"options": {"B": "two", "A": "one"}},
        {"options": ["one", "two"], "domain": "choice"},
    ],
)
def test_options_are_asked_below_the_question_and_only_once(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    prompt = read(tmp_path, **row)
    assert prompt.domain == "choice"
    assert prompt.messages[-1]["content"] == "Which?\n\nA. one\nB. two"
    assert judge(prompt, "two", True).verdict == 1
    save_prompts(tmp_path / "again.jsonl", [prompt])
    assert load_prompts(tmp_path / "again.jsonl") == [prompt]


def test_options_of_another_domain_and_raw_texts_are_left_alone(tmp_path: Path) -> None:
    assert read(tmp_path, options=["1", "2"], domain="math").messages[0]["content"] == "Which?"
    assert read(tmp_path, options=["1", "2"], raw=True).messages[0]["content"] == "Which?"


def test_options_that_are_none_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl:1: `options` is 'x'; it must be a list"):
        read(tmp_path, options="x")
