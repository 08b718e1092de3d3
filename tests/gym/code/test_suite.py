"""Tests in the forms of common data sets, and what is said of those that cannot be run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compass.gym.code.suite import BadTestsError, CallTest, CodeTest, InputTest, read_suite

CHECK = "def check(candidate):\n    assert candidate(1)"
ADD = {"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        (
            {"tests": [{"stdin": "1", "stdout": "2"}, {"code": "assert f(1) == 2"}]},
            (InputTest(stdin="1", stdout="2"), CodeTest(code="assert f(1) == 2")),
        ),
        (
            {"input_output": {"inputs": ["1\n", ["2", "3"]], "outputs": ["1", ["5"]]}},
            (InputTest(stdin="1\n", stdout="1"), InputTest(stdin="2\n3", stdout="5")),
        ),
        (
            {"input_output": json.dumps(ADD)},
            (
                CallTest(name="add", arguments=(1, 2), expected=(3,)),
                CallTest(name="add", arguments=(3, 4), expected=(7,)),
            ),
        ),
        (  # APPS wraps a result in a list
            {"input_output": {"inputs": [["a"]], "outputs": [["b"]], "fn_name": "f"}},
            (CallTest(name="f", arguments=("a",), expected=(["b"], "b")),),
        ),
        (  # LiveCodeBench has lines of JSON
            {"input_output": {"inputs": ["[1, 2]\n3"], "outputs": ["true"], "fn_name": "f"}},
            (CallTest(name="f", arguments=([1, 2], 3), expected=(True,)),),
        ),
        (
            {"test_list": ["assert f(1) == 2"], "test_setup_code": "import math"},
            (CodeTest(code="import math\nassert f(1) == 2"),),
        ),
        (
            {"test_list": ["assert f(1) == 2"], "test_imports": ["import math", "import re"]},
            (CodeTest(code="import math\nimport re\n\nassert f(1) == 2"),),
        ),
        (
            {"test": CHECK, "entry_point": "f"},
            (CodeTest(code=f"{CHECK}\n\ncheck(globals()['f'])\n"),),
        ),
    ],
)
def test_each_form_is_read(row: dict[str, Any], tests: tuple[object, ...]) -> None:
    assert read_suite(row) == tests


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, (InputTest(stdin="1", stdout="2"),)),
        ([{"stdin": "1", "stdout": "2"}], (InputTest(stdin="1", stdout="2"),)),
        (["assert f(1)"], (CodeTest(code="\nassert f(1)"),)),
    ],
)
def test_tests_may_be_the_answer(answer: object, tests: tuple[object, ...]) -> None:
    assert read_suite({}, json.dumps(answer)) == tests


@pytest.mark.parametrize(
    ("code", "hidden"),
    [
        ("assert sum(10, 15) == 6", ("sum",)),
        ("assert max(sorted([1])) == 1", ("max",)),
        ("assert sum(f(1)) == 6", ()),
        ("x = 1", ()),
    ],
)
def test_a_function_called_like_one_of_pythons_is_the_programs(
    code: str, hidden: tuple[str, ...]
) -> None:
    (test,) = read_suite({"tests": [{"code": code}]})
    assert isinstance(test, CodeTest)
    assert test.hidden == hidden


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "needs exactly one of `tests`, `input_output`, `test_list`, `test`: has none"),
        ({"tests": [], "test": ""}, "has tests and test"),
        ({"tests": []}, "needs at least one test: `tests` is empty"),
        ({"tests": 3}, "`tests` is 3; it must be a list"),
        ({"tests": "[3"}, "`tests` is no JSON"),
        ({"tests": [3]}, "`tests[0]` is 3; it must be an object"),
        ({"tests": [{"input": "1", "output": "1"}]}, "`tests[0]` has ['input', 'output']"),
        ({"tests": [{"stdin": 1, "stdout": "1"}]}, "`tests[0].stdin` is 1; it must be text"),
        ({"tests": [{"code": "assert ("}]}, "`tests[0].code` is no Python"),
        ({"tests": [{"code": "assert f(\0)"}]}, "`tests[0].code` is no Python"),
        ({"tests": [{"code": "(" * 5000}]}, "`tests[0].code` is no Python"),
        ({"input_output": "{"}, "`input_output` is no JSON"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "has 1 inputs and 0 outputs"),
        ({"input_output": {"inputs": [1], "outputs": ["1"]}}, "is 1; it must be text"),
        (
            {"input_output": {"inputs": ["1 2"], "outputs": ["3"], "fn_name": "f"}},
            "`inputs` is no JSON",
        ),
        ({"test": "def check(c): pass"}, "needs `entry_point` beside `test`: it is None"),
    ],
)
def test_tests_that_cannot_be_run_are_named_in_one_line(
    row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadTestsError) as caught:
        read_suite(row)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
