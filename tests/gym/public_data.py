"""Verdicts on public data sets, counted: right answers score 1, and 0 once they are made wrong.

    python -m tests.gym.public_data --gsm8k FILE ... --ifeval FILE --bfcl FILE ... \\
        --choice FILE ...

Rows are those of openai/grade-school-math (with `solution`), of google-research's IFEval, of the
prompt files that tools/make_bfcl.py writes, and any with `options`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compass.gym.choice.options import option_of, read_options
from compass.gym.datasets import load_prompts
from compass.gym.domains.choice import judge as judge_choice
from compass.gym.domains.math import judge as judge_math
from compass.gym.domains.tools import judge as judge_tools
from compass.gym.instructions.constraint import read_constraints
from compass.jsonl import read_jsonl
from compass.types import Prompt
from tests.gym.instructions.made_answers import MADE
from tests.gym.tool_calls.gold_calls import as_json, as_python, changed, gold

Cases = Iterator[tuple[str, bool]]
"""What a case shows, and whether it does."""


def gsm8k(path: Path) -> Cases:
    """Gold solutions as they are, and with another last number."""
    for _, row in read_jsonl(path):
        prompt = Prompt(id=row["id"], messages=(), answer=row["answer"])
        yield "gold solution is 1", judge_math(prompt, row["solution"], True).verdict == 1
        wrong = re.sub(r"#### *(.*)$", lambda m: f"#### {_another(m[1])}", row["solution"])
        assert wrong != row["solution"]
        judged = judge_math(prompt, wrong, True)
        yield "changed number is a valid 0", (judged.verdict, judged.valid) == (0, True)


def _another(number: str) -> str:
    return str(int(number.replace(",", "")) + 1)


def ifeval(path: Path) -> Cases:
    """Each constraint of each row, with an answer made to follow it and one made not to."""
    for _, row in read_jsonl(path):
        for constraint in read_constraints(row):
            for wanted in (True, False):
                answer = MADE[constraint.name](constraint.arguments, wanted)
                told = "follows" if wanted else "does not follow"
                yield f"{constraint.name} {told}", constraint.holds(answer) is wanted


def bfcl(path: Path) -> Cases:
    """Possible answers in both forms, as they are and with each required argument changed."""
    for prompt in load_prompts(path):
        right = gold(prompt.extra["ground_truth"], prompt.tools or ())
        wrong = list(changed(right, prompt.tools or ()))
        yield f"has a required argument: {bool(wrong)}", True
        for form in (as_json, as_python):
            verdict = judge_tools(prompt, form(right), True).verdict
            yield f"{form.__name__}: possible answer is 1", verdict == 1
            reverse = judge_tools(prompt, form(right[::-1]), True).verdict
            yield f"{form.__name__}: possible answer backwards is 1", reverse == 1
            for calls in wrong:
                judged = judge_tools(prompt, form(calls), True)
                shown = f"{form.__name__}: changed argument is a valid 0"
                yield shown, (judged.verdict, judged.valid) == (0, True)
        called = judge_tools(prompt, as_json([*right, *right] or [("any", {})]), True).verdict
        yield "one call too many is 0", called == 0


def choice(path: Path) -> Cases:
    """Each option by its letter, its text and both."""
    for prompt in load_prompts(path):
        options = read_options(prompt.extra) or ()
        right = option_of(prompt.answer or "", options)
        for i, option in enumerate(options):
            letter, wanted = "ABCDEFGHIJ"[i], float(i == right)
            told = "right option is 1" if i == right else "wrong option is 0"
            for form, said in (
                ("letter", f"The answer is {letter}."),
                ("box", f"\\boxed{{{letter}}}"),
                ("both", f"{letter}. {option}"),
                ("text", option),
            ):
                if form != "text" or options.count(option) == 1:
                    verdict = judge_choice(prompt, said, True).verdict
                    yield f"{form}: {told}", verdict == wanted


SETS: Mapping[str, Any] = {"gsm8k": gsm8k, "ifeval": ifeval, "bfcl": bfcl, "choice": choice}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in SETS:
        parser.add_argument(f"--{name}", nargs="*", type=Path, default=[])
    paths = vars(parser.parse_args())
    for name, cases in SETS.items():
        for path in paths[name]:
            counts = Counter(cases(path))
            for shown in sorted({shown for shown, _ in counts}):
                right, wrong = counts[shown, True], counts[shown, False]
                print(f"{path.name}: {shown}: {right} of {right + wrong}")


if __name__ == "__main__":
    main()
