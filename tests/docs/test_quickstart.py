"""docs/quickstart.md, block by block, from an empty folder with nothing but the wheel."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.wheel import ROOT, build_wheel, environment_with

PAGE = ROOT / "docs" / "quickstart.md"
MAX_SECONDS = 360


@pytest.mark.long
def test_the_quickstart_runs_as_it_stands_in_six_minutes_and_teaches(tmp_path: Path) -> None:
    started = time.monotonic()
    environment = environment_with(build_wheel(tmp_path / "wheel"), tmp_path / "environment")
    folder = tmp_path / "empty"
    folder.mkdir()

    def shell(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    where = shell("python -c 'import compass; print(compass.__file__)'")
    assert Path(where.strip()).is_relative_to(tmp_path / "environment")
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        shell(block)
    assert time.monotonic() - started < MAX_SECONDS

    before, after = (
        json.loads((folder / "runs" / name / "summary.json").read_text())["questions"]["accuracy"]
        for name in ("before", "after")
    )
    assert after > before + 0.15
    model = AutoModelForCausalLM.from_pretrained(folder / "my_model", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder / "my_model")("7+8=?")["input_ids"]
