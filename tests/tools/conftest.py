"""Runs a benchmark in this process and reads the figures it prints last."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import bench
import pytest


@pytest.fixture
def figures_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], dict[str, Any]]:
    """(words of the command line) -> what `tools/bench.py WORDS --json` ends with, after checking
    what all benchmarks promise."""

    def run(words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench.py", *words.split(), "--json"])
        bench.main()
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["bench"] == words.split()[0]
        assert figures["ratio"] > 0
        assert figures["limit"] > 0
        assert figures["seconds"] > 0
        assert figures["versions"]["python"] == sys.version.split()[0]
        assert figures["versions"]["torch"]
        return figures

    return run
