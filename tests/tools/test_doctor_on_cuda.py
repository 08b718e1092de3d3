"""Trainer and generator agree on the branches that a CUDA device takes."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_doctors_table_is_fine_on_cudas_branches_in_float32_and_bfloat16() -> None:
    words = "--num-prompts 8 --group-size 2 --max-completion-tokens 32 --parallel.device cpu"
    ran = subprocess.run(
        [sys.executable, "-m", "tests.tools.doctor_on_cuda", *words.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "HIGH" not in ran.stdout
    rows = re.findall(r"direct │ +(float32|bfloat16) │ +(off|r3) .* ok │", ran.stdout)
    assert {dtype for dtype, _ in rows} == {"float32", "bfloat16"}, ran.stdout
    # All of them in bfloat16: float32 is not rounded to what these kernels take.
    assert int(re.search(r"FlashAttention ran (\d+) times", ran.stdout)[1]) > 0
