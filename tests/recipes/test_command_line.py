"""What a shell sees of the recipes: help, exit codes, and a launch without torchrun."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import get_type_hints

import pytest

from compass.config import parse
from tests.recipes.rank_processes import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[a-z]*.py"))


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def flags(config_cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flags(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"--{prefix}{field.name}"


@pytest.mark.parametrize("name", RECIPES)
def test_help_names_every_field_with_an_explanation(name, capsys):
    recipe = importlib.import_module(f"recipes.{name}")
    with pytest.raises(SystemExit) as end:
        parse(recipe.Config, ["--help"], description=recipe.__doc__)
    assert end.value.code == 0
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", capsys.readouterr().out)
    assert recipe.__doc__.split(".")[0] in text
    sections = dict(re.findall(r"(--[\w.]+) (.*?)(?= --[\w.]+ |$)", text))
    for flag in flags(recipe.Config):
        words = re.sub(r"\{[^}]*\}|\([^)]*\)|[A-Z|\[\]&]+\b", " ", sections[flag]).split()
        assert len(words) >= 2, f"{flag}: {sections[flag]!r}"


def test_a_mistake_is_exit_code_2_and_one_line():
    ended = shell("recipes/evaluate.py", "--modle", "x")
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown flag --modle; did you mean --model?\n"
    assert ended.stdout == ""


def test_help_is_exit_code_0():
    ended = shell("recipes/evaluate.py", "--help")
    assert ended.returncode == 0
    assert "--num_samples" in ended.stdout
