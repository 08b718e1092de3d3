"""A run that dies while groups are growing loses nothing: resumed, it has the same account, the
same history and the same weights as one that never stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import ROOT, run_ranks, started_ranks

WORLD = 2
GROWTHS_BEFORE_DEATH = 5
"""On one rank: a few a step, so in the second step or later."""


@pytest.fixture(scope="module")
def flags(guessing_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pairs of coin flips: about half of the groups are flat and climb the whole ladder."""
    rows = [{"id": str(i), "problem": f"{i} apples?", "answer": "37"[i % 2]} for i in range(8)]
    prompts = write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)
    values = {
        "config": ROOT / "configs/rl/debug_gsm8k.toml",
        "model": guessing_model,
        "prompts": prompts,
        "num_steps": 4,
        "num_prompts_per_step": 8,
        "group_size": 2,
        "checkpoint.interval": 1,
        "zv.expand.gated": "false",
        "zv.expand.max_group_size": 8,
        "zv.expand.max_added": 3.0,
        "optim.lr": 1e-3,
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def account(run_dir: Path) -> dict[str, Any]:
    """The ledger without its clock."""
    ledger = json.loads((run_dir / "ledger.json").read_text())
    for row in ledger["zv"].values():
        del row["seconds"]
    return ledger


@pytest.mark.long
def test_a_run_killed_in_mid_expansion_resumes_to_the_same_ledger_and_weights(
    flags: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = run_ranks(["recipes/rl.py", *flags, "--run_dir", str(whole)], WORLD)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr

    dying = ["-m", "tests.recipes.dies_in_expansion", str(GROWTHS_BEFORE_DEATH), *flags]
    with started_ranks([*dying, "--run_dir", str(killed)], WORLD) as ranks:
        assert -signal.SIGKILL in [rank.wait(timeout=120) for rank in ranks]
    assert 1 <= len(read_lines(killed / "metrics.jsonl")) < 4, "it died between steps 2 and 4"
    assert not (killed / "ledger.json").exists()

    resumed = run_ranks(["recipes/rl.py", *flags, "--run_dir", str(killed), "--resume"], WORLD)
    assert [rank.code for rank in resumed] == [0, 0], resumed[0].stderr
    assert account(killed) == account(whole)
    spent = account(whole)["zv"]
    assert spent["expand"]["rollouts"] > 0
    assert spent["expand"]["saved"] > 0
    assert read_lines(killed / "history.jsonl") == read_lines(whole / "history.jsonl")
    weights = Path("model") / "model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
