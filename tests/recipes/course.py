"""A model's whole course on ranks that share experts: fine-tuned, reinforced, interrupted, resumed,
exported. One body for every device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.recipes.json_lines import write_lines
from tests.recipes.rank_processes import ROOT

LIMIT_SECONDS = 150.0
"""Of one program."""


def take_course(
    model: Path, folder: Path, *, device: str, world_size: int, settings: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two steps of SFT, two of RL, and the second of these again from the checkpoint of the first.

    Returns:
        The weights that were exported, of the run that was not interrupted and of the one resumed.
    """
    turns = [("user", "How many apples are left?"), ("assistant", "#### 3")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    prompts = [
        {"id": f"{i}", "problem": "How many apples are left?", "answer": "37"[i % 2]}
        for i in range(4)
    ]
    common = {"parallel.ep": world_size, "parallel.device": device, "optim.lr": 1e-3, **settings}
    tuned = folder / "sft"
    sft = {
        "model": model,
        "data.path": write_lines(folder / "chats.jsonl", [chat] * 8),
        "data.num_examples_per_step": 4,
        "data.max_len": 100,
        "num_steps": 2,
        "run_dir": tuned,
        **{name: value for name, value in common.items() if not name.startswith("generator.")},
    }
    rl = {
        "config": ROOT / "configs/rl/debug_gsm8k.toml",
        "model": tuned / "model",
        "prompts": write_lines(folder / "prompts.jsonl", prompts),
        "num_steps": 2,
        "max_completion_tokens": 12,
        "checkpoint.interval": 1,
        "run_dir": folder / "rl",
        **common,
    }
    _run("recipes/sft.py", sft, world_size)
    _run("recipes/rl.py", rl, world_size)
    whole = _exported(folder / "rl")
    shutil.rmtree(folder / "rl/checkpoints/step_000002")
    shutil.rmtree(folder / "rl/model")
    _run("recipes/rl.py", rl, world_size, "--resume")
    return whole, _exported(folder / "rl")


def _run(recipe: str, values: Mapping[str, Any], world_size: int, *flags: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words = [f"--{name}={value}" for name, value in values.items()]
    ended = subprocess.run(
        [*torchrun, str(world_size), recipe, *words, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert ended.returncode == 0, ended.stderr


def _exported(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model/model.safetensors")
