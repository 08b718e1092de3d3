"""Cases of Triton kernels, run where there is no device for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def interpreted_outcomes(module: str) -> dict[str, str]:
    """Of every case of `module`, which prints them as JSON: "passed", or a traceback. In a process
    of its own: Triton must be told to interpret before it is imported."""
    ran = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])
