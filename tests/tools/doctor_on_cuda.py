"""`tools/doctor.py` as a CUDA device would run its attention: the words of its command line follow.

A program of its own, because what it replaces must be gone afterwards.
"""

import runpy
import sys
from pathlib import Path

from tests.cuda_on_cpu import calls, cuda_on_cpu

DOCTOR = Path(__file__).parents[2] / "tools" / "doctor.py"

if __name__ == "__main__":
    sys.path.insert(0, str(DOCTOR.parent))
    with cuda_on_cpu():
        try:
            runpy.run_path(str(DOCTOR), run_name="__main__")
        finally:
            print(f"FlashAttention ran {len(calls)} times", flush=True)
