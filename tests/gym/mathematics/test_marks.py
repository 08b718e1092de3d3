"""Marks of the final answer: boxes, `<answer>` tags, `####`."""

from __future__ import annotations

import pytest

from tests.gym.mathematics.boxed_answers import is_right, judged

RIGHT = [
    ("B", "<answer>B</answer>"),
    ("B", "#### B"),
    ("1,2", "\\boxed{1}, \\boxed{2}"),
    ("1,2", "\\boxed{1} or \\boxed{2}"),
    ("1,2", "$\\boxed{x=1}$ and $\\boxed{x=2}$"),
    ("(1,2),(3,4)", "\\boxed{(1,2)} and \\boxed{(3,4)}"),
    ("5", "$\\boxed 5$"),
    ("5", "\\boxed 5"),
    ("5", "$$\\boxed{5}$$"),
    ("5", "\\[\\boxed{5}\\]"),
    ("5", "\\boxed{\\boxed{5}}"),
    ("5", "\\fbox{5}"),
    ("5", "\\framebox{5}"),
    ("5", "\\boxed {5}"),
    ("5", "\\boxed{5}."),
    ("5", "**\\boxed{5}**"),
    ("5", "\\boxed{5"),
    ("5", "<answer>5</answer>"),
    ("5", "<answer> 5 </answer>"),
    ("5", "<answer>\\boxed{5}</answer>"),
    ("5", "<answer>$5$</answer>"),
    ("5", "<answer>x = 5</answer>"),
    ("5", "\\boxed{3}\n\nWait, \\boxed{5}"),
    ("5", "#### 5"),
    ("5", "blah\n#### 5\n"),
    ("5", "#### $5"),
    ("5", "#### 5."),
    ("5", "#### **5**"),
    ("5", "####5"),
    ("even", "#### even"),
    ("1,2,3", "\\boxed{1}, \\boxed{2}, \\boxed{3}"),
    ("2,3", "\\boxed{2}, \\boxed{3}"),
    ("2,3", "\\boxed{3} and \\boxed{2}"),
    ("2,3", "\\(\\boxed{2}\\) and \\(\\boxed{3}\\)"),
    ("2,3", "$\\boxed{2}$, $\\boxed{3}$"),
    ("2,3", "\\boxed{2}\\text{ and }\\boxed{3}"),
    ("2,3", "First \\boxed{7}. So \\boxed{2} or \\boxed{3}"),
    ("2", "\\boxed{2}, \\boxed{2}"),
    ("2", "\\boxed{2} \\boxed{2}"),
]

WRONG = [
    ("5", "\\boxed{5} and \\boxed{6}"),
    ("5", "\\boxed{5}, \\boxed{6}, \\boxed{7}"),
    ("5", "\\boxed{5}\\boxed{6}"),
    ("5", "\\boxed{5} no, \\boxed{6}"),
    ("5", "<answer>6</answer>"),
    ("5", "5 <answer>6</answer>"),
    ("5", "#### 5\nand then 6"),
    ("5", "#### 5 apples are eaten, leaving\n6"),
    ("5", "#### 5\n\nTherefore we get 6."),
    ("5", "\\boxed{6} (5 ways)"),
    ("5", "\\boxed{}"),
    ("2,3", "\\boxed{2}, \\boxed{3}, \\boxed{4}"),
    ("2,3", "\\boxed{2}"),
    ("2,3", "\\boxed{3}"),
    ("2,3", "\\boxed{2}, \\boxed{4}"),
]


@pytest.mark.parametrize(("reference", "completion"), RIGHT)
def test_the_answer_is_found(reference: str, completion: str) -> None:
    assert is_right(reference, completion)


@pytest.mark.parametrize(("reference", "completion"), WRONG)
def test_nothing_else_is_taken_for_the_answer(reference: str, completion: str) -> None:
    assert not is_right(reference, completion)


@pytest.mark.parametrize(
    ("completion", "finished", "right"),
    [
        ("\\boxed{4", True, True),
        ("\\boxed{4", False, False),  # it may have been going to be 42
        ("\\boxed{4}", False, True),
        ("#### 3\n\nTherefore we get 4.", True, True),
        ("#### Step 1: Add\n2 + 2 = 4\n#### 4\n\n", True, True),
        ("#### 4 eggs are left, so she sells\n42", True, False),
        ("##### 4", True, True),
        ("#### 4\n#### 5", True, False),
    ],
)
def test_unclosed_boxes_and_headings(completion: str, finished: bool, right: bool) -> None:
    judgement = judged("4", completion, finished=finished)
    assert judgement.valid
    assert judgement.verdict == float(right)


def test_the_last_mark_wins_whatever_its_kind() -> None:
    assert is_right("2", "\\boxed{1} <answer>2</answer>")
    assert is_right("2", "<answer>1</answer> \\boxed{2}")
    assert is_right("2", "\\boxed{1}\n#### 2")
    assert not is_right("1", "\\boxed{1}\n#### 2")
