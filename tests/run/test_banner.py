"""The banner says what a run is, whatever its names and prompts look like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compass.console import MAX_COLUMNS
from compass.models.policy import build_model
from compass.models.specs import SPECS
from compass.run.banner import Data, banner, sizes
from tests.tiny_batch import SPEC


def test_a_few_lines_say_what_the_run_is(alone):
    data = Data(amount="512 prompts", first="<user>1+1?\n<assistant>")
    lines = banner("tiny", build_model(SPEC), alone, data, Path("runs/x"), start=20)
    assert lines == [
        "model   tiny: 55.3k parameters, 36.9k of them active, float32",
        "ranks   1 on cpu, experts over 1",
        "data    512 prompts",
        r"first   <user>1+1?\n<assistant>",
        "folder  runs/x",
        "resumed after step 20",
    ]


@pytest.mark.parametrize("first", ["x" * 5000, "\x1b[31m\r\x00", "\ud83d"])
def test_no_prompt_breaks_a_line_or_the_terminal(alone, first):
    data = Data(amount="1 prompt", first=first)
    for line in banner("m" * 300, build_model(SPEC), alone, data, Path("r"), start=0):
        assert len(line) <= MAX_COLUMNS
        assert line.isprintable()


def test_active_parameters_are_those_that_a_token_meets():
    """Qwen3-30B-A3B: 30.5 billion, 3.3 of them active (its model card)."""
    assert sizes(build_model(SPECS["30b-a3b"])) == "30.5B parameters, 3.35B of them active"
    dense = replace(SPEC, num_experts=0, top_k=0, dense_layers=())
    assert "active" not in sizes(build_model(dense))
