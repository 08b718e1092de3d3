"""tools/bench.py cuda: that every part runs, without the device it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from benches.cuda import MOE_1_9B

from compass.errors import UserError

ROOT = Path(__file__).parents[3]
SMALL = (
    "cuda --device cpu --spec debug --dtype float32 --batches 1 2 --contexts 8 16 "
    "--train-sequences 2 1 --train-tokens 9"
)


def test_every_part_runs_and_is_written(
    figures_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    figures = figures_of(f"{SMALL} --out {tmp_path}/results/cuda.json")
    written = json.loads((tmp_path / "results/cuda.json").read_text())
    assert written.items() <= {**figures, "versions": written["versions"]}.items()
    assert written["versions"]["torch"] == torch.__version__
    assert written["device"] == "cpu"
    sizes = [(1, 8), (2, 8), (2, 16)]
    measured = [(r["backend"], r["kv_dtype"], r["batch"], r["context"]) for r in written["kernels"]]
    assert measured == [
        ("gather", dtype, *size) for size in sizes for dtype in ("float32", "float8_e4m3fn")
    ]
    decoded = [r for r in written["decoding"] if "refused" not in r]
    assert [(r["variant"], r["batch"], r["context"]) for r in decoded] == [
        (variant, *size) for variant in ("direct", "direct, gather", "fp8") for size in sizes
    ]
    assert all(r["tokens_per_s"] > 0 for r in decoded)
    refused = [r["variant"] for r in written["decoding"] if "refused" in r]
    assert refused == ["direct, graphs", "fp8, graphs", "fp8 weights, graphs"]
    assert [r["sequences"] for r in written["training"] if r["tokens_per_s"] > 0] == [2, 1]
    assert [r["variant"] for r in written["refresh"] if r["ms"] > 0] == ["direct", "fp8"]


def test_nothing_is_begun_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = f"bench.py {SMALL} --deadline-seconds 0 --out {tmp_path}/cuda.json"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(UserError, match="deadline_seconds=0"):
        bench.main()
    written = json.loads((tmp_path / "cuda.json").read_text())
    parts = ("peaks", "kernels", "decoding", "training", "refresh")
    assert not any(written[part] for part in parts)


def test_a_model_can_be_cut_to_fewer_layers(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    figures = figures_of(f"{SMALL} --layers 1 --batches 1 --contexts 8")
    assert figures["sizes"]["num_layers"] == 1


def test_without_a_device_it_ends_with_one_line_and_code_2() -> None:
    ran = subprocess.run(
        [sys.executable, "tools/bench.py", "cuda"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: bench cuda: torch sees no CUDA device;")
    assert ran.stderr.count("\n") == 1
    assert not ran.stdout


def test_the_default_model_has_the_size_it_is_named_by() -> None:
    assert 1.85e9 < MOE_1_9B.num_params.total < 1.95e9
