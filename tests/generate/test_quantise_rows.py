"""The kernel that rounds rows to E4M3, without a GPU: interpreted, against torch's own rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generate import quantise_rows_cases

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Of every case, in one process: Triton must be told to interpret before it is imported."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.generate.quantise_rows_cases"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", quantise_rows_cases.CASES)
def test_interpreted_on_the_cpu(case, outcomes) -> None:
    assert outcomes[case] == "passed"
