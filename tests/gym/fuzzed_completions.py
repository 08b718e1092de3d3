"""Completions that no policy should write, but some will: right ones torn apart, soups of marks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from compass.gym.domains.reasoning import FAULTY_TASKS, make_prompts
from compass.gym.instructions.constraint import KINDS
from compass.types import Prompt
from tests.gym.instructions.made_answers import MADE
from tests.gym.instructions.test_kinds import ARGUMENTS

Gold = tuple[Prompt, str]
"""A prompt, and a right completion of it."""

ATOMS = (
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<tool_call>",
        "</tool_call>",
        "\\boxed{",
        "}",
    ),
    *(
        "####",
        "```python\n",
        "```",
        "\n",
        "\n\n",
        "***",
        "******",
        "* ",
        "- ",
        "<<",
        ">>",
        '"',
        "'",
    ),
    *(
        "{",
        "[",
        "(",
        ")",
        "]",
        "{}",
        ",",
        ":",
        ".",
        "!",
        "?",
        ";",
        "=",
        "+",
        "^",
        "_",
        "\\",
        "/",
        "%",
    ),
    *(
        "\\frac{",
        "\\sqrt{",
        "\\int_0^1 ",
        "\\sum_{n=1}^{9} ",
        "\\text{",
        "\\pmod",
        "\\begin{pmatrix}",
    ),
    *(
        "\\left(",
        "\\right)",
        "^{-1}",
        "x",
        "y!",
        "!!",
        "9^9^9",
        "1e999",
        "0.333...",
        "1/0",
        "i",
        "e",
    ),
    *(
        "0",
        "7",
        "42",
        "-1",
        "3.14",
        "1,234",
        "1/2",
        "50%",
        "$18",
        "9" * 400,
        "0x1F",
        "٣",
        "四",
        "½",
    ),
    *("nan", "inf", "None", "null", "true", "[1, 2]", '{"name": "f"', '"arguments": ', "f(a=1)"),
    *(
        "The answer is ",
        "คำตอบคือ ",
        "答案是",
        "So ",
        "A",
        "B.",
        "(C)",
        "and",
        "not ",
        "P.S. ",
        "Dr. ",
    ),
    *(
        "\0",
        "\x1b[2J",
        "\u200b",
        "\u202e",
        "\ufeff",
        "e\u0301",
        "👩‍👩‍👧",
        "ไทย",
        "\U0010ffff",
        "\u2028",
        "ß",
    ),
    *(
        "import os\n",
        "def double(x):\n",
        "    return x\n",
        "print(1)\n",
        "while",
        "lambda:",
        "@",
        "async ",
    ),
)


def fuzzed(golds: Sequence[Gold], number: int, seed: int) -> Iterator[tuple[Prompt, str]]:
    """Prompts with completions, about half of them made from a right one."""
    rng = random.Random(seed)
    for _ in range(number):
        prompt, right = rng.choice(golds)
        yield prompt, rng.choice(_WAYS)(rng, right)


def _torn(rng: random.Random, right: str) -> str:
    for _ in range(rng.randint(1, 4)):
        start, end = sorted(rng.randint(0, len(right)) for _ in range(2))
        middle = rng.choice(("", right[start:end] * 2, rng.choice(ATOMS), right[start:end][::-1]))
        right = right[:start] + middle + right[end:]
    return right


def _soup(rng: random.Random, right: str) -> str:
    return "".join(rng.choices(ATOMS, k=rng.randint(0, 60)))


def _spliced(rng: random.Random, right: str) -> str:
    return _soup(rng, right) + right + rng.choice(("", _soup(rng, right)))


def _repeated(rng: random.Random, right: str) -> str:
    unit = rng.choice((rng.choice(ATOMS), "".join(rng.choices(ATOMS, k=3)), right))
    return unit * rng.choice((50, 500, 5_000)) if len(unit) < 100 else unit * 10


_WAYS = (_torn, _torn, _spliced, _soup, _soup, _repeated)


def _prompt(domain: str, answer: str | None = None, **extra: object) -> Prompt:
    return Prompt(id=domain, messages=(), answer=answer, domain=domain, extra=extra)


def _math() -> Iterator[Gold]:
    for answer in (
        "1/2",
        "(1,2)",
        "x^2+1",
        "\\frac{\\pi}{3}",
        "[0,1)",
        "12:00",
        "B",
        "x=3",
        "\\{1,2\\}",
    ):
        yield _prompt("math", answer), f"<think>so</think>Thus \\boxed{{{answer}}}."
    yield (
        _prompt("math", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        "#### \\begin{pmatrix}1&2\\\\",
    )


def _reasoning() -> Iterator[Gold]:
    from reasoning_gym.factory import DATASETS

    for task in sorted(DATASETS.keys() - FAULTY_TASKS.keys()):
        for prompt in make_prompts(task, 1, 0):
            yield prompt, f"<think>so</think><answer>{prompt.answer}</answer>"


def _chain() -> Iterator[Gold]:
    yield _prompt("chain", "7"), "<think>3+4=7</think>7"


def _code() -> Iterator[Gold]:
    yield (
        _prompt("code", tests=[{"code": "assert double(21) == 42"}]),
        "```python\ndef double(x):\n    return 2 * x\n```",
    )
    yield (
        _prompt("code", tests=[{"stdin": "4", "stdout": "8"}]),
        "```\nprint(2 * int(input()))\n```",
    )


def _instructions() -> Iterator[Gold]:
    for name in KINDS:
        for arguments in ARGUMENTS.get(name, [{}]):
            row = {"instruction_id_list": [name], "kwargs": [arguments]}
            yield _prompt("instructions", **row), MADE[name](arguments, True)


def _tools() -> Iterator[Gold]:
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {}}}}]
    arguments = {"a": [1], "b": ["", [1, {"c": [2]}]]}
    for completion in (
        "[f(a=1, b=[1, {'c': 2}])]",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    ):
        yield _prompt("tools", tools=tools, calls=[{"f": arguments}]), completion
        yield _prompt("tools", tools=tools, calls=[]), "I cannot."


def _choice() -> Iterator[Gold]:
    options = ["It is heavier.", "It is lighter.", "42", "C"]
    for answer in "ABCD":
        yield (
            _prompt("choice", answer, options=options),
            f"<think>so</think>The answer is {answer}.",
        )


GOLDS: Mapping[str, Callable[[], Iterator[Gold]]] = {
    "math": _math,
    "reasoning_gym": _reasoning,
    "chain": _chain,
    "code": _code,
    "instructions": _instructions,
    "tools": _tools,
    "choice": _choice,
}
"""Of each domain."""
