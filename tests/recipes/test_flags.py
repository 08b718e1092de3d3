"""Mistakes in flags and --help are answered before what takes seconds is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.recipes.rank_processes import ROOT

HEAVY = {"torchtitan", "torchao", "torchtune", "torch.distributed.checkpoint", "torch._inductor"}
"""Modules that take from half a second to five."""
RUN = """
import runpy, sys
sys.argv = [{path!r}, *{words!r}]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as ended:
    print("code", ended.code, "heavy", sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("program", "flag"),
    [
        ("recipes/rl.py", "--model"),
        ("recipes/sft.py", "--model"),
        ("recipes/evaluate.py", "--model"),
        ("recipes/generate.py", "--model"),
        ("tools/export.py", "--output"),
    ],
)
@pytest.mark.parametrize(
    ("words", "answer", "code"),
    [
        (["--unknown", "1"], "error: unknown flag --unknown; --help lists all of them\n", 2),
        (["--help"], "", 0),
    ],
    ids=["mistake", "help"],
)
def test_flags_are_answered_before_anything_heavy_is_imported(program, flag, words, answer, code):
    source = RUN.format(path=f"{ROOT}/{program}", words=words, heavy=HEAVY)
    ended = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == f"{answer}code {code} heavy []\n"
    assert (code == 0) == (flag in ended.stdout)
