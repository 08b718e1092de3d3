"""An answer in one line: what means the same is written the same."""

from __future__ import annotations

import pytest

from compass.gym.mathematics.answer import written
from compass.gym.mathematics.verdict import final_answer
from compass.gym.reward import MAX_ANSWER, score
from compass.types import Prompt

ALIKE = [
    [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{50\%}", r"\boxed{x = \frac12}", "#### 1/2"],
    [r"\boxed{1, 2}", r"\boxed{2, 1}", r"\boxed{\{1, 2\}}"],
    [r"\boxed{x < 3}", r"\boxed{(-\infty, 3)}"],
    [r"\boxed{\text{no solution}}", "The answer is no solution."],
    [r"\boxed{(1, 2)}"],
    [r"\boxed{(2, 1)}"],
    [r"\boxed{[1, 2)}"],
    [r"\boxed{3:4}"],
    [r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}"],
    [r"\boxed{x + y = 2}"],
    [r"\boxed{7 \pmod{11}}"],
    [r"\boxed{10^{20000}}"],
]


def test_what_means_the_same_is_written_the_same_and_nothing_else() -> None:
    lines = [{written(final_answer(text, finished=True)) for text in texts} for texts in ALIKE]
    assert [len(same) for same in lines] == [1] * len(ALIKE)
    assert len(set.union(*lines)) == len(ALIKE)


@pytest.mark.parametrize(
    ("domain", "extra", "answer", "completion", "expected"),
    [
        ("math", {}, "1/2", r"So \boxed{0.5}.", "1/2"),
        ("math", {}, "1/2", "<think>no end", None),
        ("choice", {"options": ["red", "blue"]}, "A", "The answer is (B).", "blue"),
        ("chain", {}, "7", "<think>3+4=7</think>8", "8"),
        ("chain", {}, "7", "<think>3+4=7", None),
    ],
)
def test_a_score_tells_the_answer_that_was_judged(domain, extra, answer, completion, expected):
    question = ({"role": "user", "content": "?"},)
    prompt = Prompt(id="a", messages=question, answer=answer, domain=domain, extra=extra)
    assert score(prompt, completion, True).answer == expected


def test_a_long_answer_is_cut_with_its_length() -> None:
    prompt = Prompt(id="a", messages=({"role": "user", "content": "?"},), answer="1")
    answer = score(prompt, r"\boxed{10^{1000}}", True).answer
    assert answer is not None
    assert len(answer) < MAX_ANSWER + 30
    assert answer.endswith("characters)")
