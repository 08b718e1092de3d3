"""tools/make_chain.py, run as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compass.gym.datasets import load_prompts

ROOT = Path(__file__).parents[2]
TWO_TERMS = ["--data.rl_levels", "2", "--data.rl_level_weights", "1"]
SMALL = ["--data.num_sft_steps", "2", "--data.num_rl_prompts", "20", "--data.num_eval_prompts", "9"]


def test_flags_set_the_sizes_and_the_seed_the_problems(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/make_chain.py"), *SMALL]
    for seed in ("0", "1"):
        subprocess.run([*command, "--output", str(tmp_path / seed), "--seed", seed], check=True)
    assert len((tmp_path / "0/sft.jsonl").read_text().splitlines()) == 2 * 40
    assert len(load_prompts(tmp_path / "0/rl.jsonl")) == 20
    assert len(load_prompts(tmp_path / "0/eval.jsonl")) == 9
    assert (tmp_path / "0/eval.jsonl").read_bytes() != (tmp_path / "1/eval.jsonl").read_bytes()


@pytest.mark.parametrize(
    "flags", [["--data.rl_levels", "2"], ["--data.num_eval_prompts", "50", *TWO_TERMS]]
)
def test_impossible_sizes_are_exit_code_2_and_write_nothing(
    tmp_path: Path, flags: list[str]
) -> None:
    command = [sys.executable, str(ROOT / "tools/make_chain.py"), "--output", str(tmp_path / "x")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "x").exists()
