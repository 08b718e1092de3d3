"""The whole idea on two CPU cores: cold start, then RL with Router Replay, in one process group.

Four launches of the ordinary recipes, each two ranks with the experts split between them: SFT on
generated sums, evaluation on held-out problems, RL (ESPO, replay r3), evaluation again.

    python tools/demo.py            (what `make demo` runs; --seed N for another seed)
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.gym.domains.chain_data import ChainDataConfig, write_chain_data
from compass.jsonl import read_jsonl
from compass.machine.shipped import shipped_folder
from compass.manifest import write_whole

NUM_RL_PROMPTS = 512
"""So few that prompts are met again: the pre-filter goes by earlier visits."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of the demo."""

    run_dir: Path = Path("runs/demo")
    """Everything the demo writes; emptied first."""
    seed: int = 0
    """Of data, initial weights, prompt order and sampling."""
    nproc_per_node: int = 2
    """Ranks."""
    ep: int = 2
    """Expert-parallel degree."""


def main(cfg: Config) -> None:
    """Run the four stages, print the table, write `summary.json`."""
    _empty(cfg.run_dir)
    console = Console(soft_wrap=True, highlight=False)
    started = time.monotonic()
    data, sft, rl = (cfg.run_dir / name for name in ("data", "sft", "rl"))
    write_chain_data(ChainDataConfig(num_rl_prompts=NUM_RL_PROMPTS), data, cfg.seed)
    console.rule("1/4  cold start: supervised fine-tuning")
    _launch(
        cfg, "sft", "--config", "configs/sft/debug.toml", "--tokenizer", data / "tokenizer",
        "--data.path", data / "sft.jsonl", "--run_dir", sft, "--seed", cfg.seed,
    )  # fmt: skip
    console.rule("2/4  evaluation on held-out problems")
    before = _evaluate(cfg, sft / "model", "evaluation_sft")
    console.rule("3/4  reinforcement learning: ESPO with Router Replay")
    _launch(
        cfg, "rl", "--config", "configs/rl/debug.toml", "--model", sft / "model",
        "--prompts", data / "rl.jsonl", "--run_dir", rl, "--seed", cfg.seed,
    )  # fmt: skip
    console.rule("4/4  evaluation again")
    after = _evaluate(cfg, rl / "model", "evaluation_rl")
    steps = [row for _, row in read_jsonl(rl / "metrics.jsonl")]
    account = json.loads((rl / "ledger.json").read_text())
    summary = {
        "accuracy_sft": before["accuracy"],
        "accuracy_rl": after["accuracy"],
        "accuracy_stderr": after["accuracy_stderr"],
        "mean_tokens_sft": before["mean_tokens"],
        "mean_tokens_rl": after["mean_tokens"],
        "seconds": time.monotonic() - started,
        "world_size": cfg.nproc_per_node,
        "ep": cfg.ep,
        "rl_steps": len(steps),
        "generated_tokens": account["generated_tokens"],
        "mismatch_k3": _mean(steps, "mismatch/k3_kl"),
        "flip_rate": _mean(steps, "router/flip_rate"),
        "frac_flat_first": _mean(steps[:10], "zv/frac_flat"),
        "frac_flat_last": _mean(steps[-10:], "zv/frac_flat"),
        "zv": account["zv"],
        "rollouts_per_useful_group": account["rollouts_per_useful_group"],
        "seed": cfg.seed,
    }
    write_whole(cfg.run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    console.print(_table(summary))
    console.print(f"summary: {cfg.run_dir / 'summary.json'}   curves: tensorboard --logdir {rl}")


def _launch(cfg: Config, recipe: str, *arguments: object) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(cfg.nproc_per_node)),
        str(shipped_folder("recipes") / f"{recipe}.py"),
        *map(str, arguments),
        *("--parallel.ep", str(cfg.ep)),
    ]
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"recipes/{recipe}.py failed with code {code}; its message is above")


def _evaluate(cfg: Config, model: Path, name: str) -> dict[str, Any]:
    output = cfg.run_dir / name
    _launch(
        cfg, "evaluate", "--config", "configs/evaluate/debug.toml", "--model", model,
        "--data", cfg.run_dir / "data" / "eval.jsonl", "--output", output,
    )  # fmt: skip
    return json.loads((output / "summary.json").read_text())["eval"]


def _empty(run_dir: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    for name in ("data", "sft", "rl", "evaluation_sft", "evaluation_rl"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    (run_dir / "summary.json").unlink(missing_ok=True)


def _mean(steps: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in steps if row.get(key) is not None]
    return math.fsum(values) / len(values) if values else math.nan


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"Compass demo, seed {summary['seed']}: 512 problems never trained on")
    table.add_column("")
    table.add_column("after SFT", justify="right")
    table.add_column("after RL", justify="right")
    table.add_row("accuracy", f"{summary['accuracy_sft']:.3f}", f"{summary['accuracy_rl']:.3f}")
    table.add_row(
        "mean tokens", f"{summary['mean_tokens_sft']:.1f}", f"{summary['mean_tokens_rl']:.1f}"
    )
    table.add_section()
    ranks = f"{summary['world_size']} ranks, EP {summary['ep']}"
    table.add_row("RL steps", "", f"{summary['rl_steps']} on {ranks}")
    flat = f"{summary['frac_flat_first']:.2f} -> {summary['frac_flat_last']:.2f}"
    table.add_row("flat groups, first and last 10 steps", "", flat)
    table.add_row("rollouts per useful group", "", f"{summary['rollouts_per_useful_group']:.1f}")
    table.add_row("generator against trainer, k3 KL", "", f"{summary['mismatch_k3']:.1e}")
    table.add_row("router flips that replay undid", "", f"{summary['flip_rate']:.2%}")
    table.add_row("seconds", "", f"{summary['seconds']:.0f}")
    return table


if __name__ == "__main__":
    exit_on_user_error(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
