"""Does a configuration fit its devices? Estimated without one: see compass/rl/memory/plan.py.

    python tools/doctor.py plan --config configs/rl/30b_a3b_8xh100.toml --model 30b-a3b \\
        --ranks 8 --device_memory_gb 80

All other flags are the recipe's own, and override the file. Exit code 2 where a phase leaves less
than the headroom free; the last line then names the field to change.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.errors import UserError
from compass.rl.config import RlConfig
from compass.rl.memory.plan import HEADROOM, IMBALANCE, MemoryPlan, plan_memory
from compass.rl.memory.workload import LONGEST_PROMPT, Workload, rl_workload, sft_workload


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Flags of `tools/doctor.py plan` that are not the recipe's."""

    ranks: int
    """Devices of the run, all together."""
    device_memory_gb: float
    """Memory of one of them in gigabytes (1e9 bytes): 80 of an H100 that has 85.5, to be on the
    safe side."""
    recipe: Literal["rl", "sft"] = "rl"
    """Whose configuration it is."""
    longest_prompt: int = LONGEST_PROMPT
    """Tokens of the longest prompt (`rl`)."""

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise UserError(f"--ranks {self.ranks} must be at least 1")
        if not self.device_memory_gb > 0:
            raise UserError(f"--device_memory_gb {self.device_memory_gb} must be above 0")


def run(argv: Sequence[str]) -> None:
    """Print the estimate, then refuse what does not fit."""
    own, of_recipe = split(argv)
    cfg = parse(PlanConfig, own, description=__doc__ or "")
    plan = plan_memory([workload(cfg, of_recipe)])[0]
    device_bytes = round(cfg.device_memory_gb * 1e9)
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table(plan, device_bytes))
    plan.check(device_bytes)
    console.print(f"it fits: the {plan.dearest} needs most, and {HEADROOM:.0%} stay free")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """This program's words, and the recipe's."""
    names = {field.name for field in fields(PlanConfig)} | {"help"}
    own: list[str] = []
    of_recipe: list[str] = []
    taking = of_recipe
    for word in argv:
        if word.startswith("-"):
            flag = word.lstrip("-").partition("=")[0].replace("-", "_")
            taking = own if flag in names else of_recipe
        taking.append(word)
    return own, of_recipe


def workload(cfg: PlanConfig, argv: Sequence[str]) -> Workload:
    """Of the recipe's configuration; files of data that it asks for are not opened, and need not be
    named."""
    if cfg.recipe == "sft":
        sft = parse(_recipe_config("sft"), ["--data.path=", *argv], description="")
        return sft_workload(sft, cfg.ranks)
    rl = parse(RlConfig, ["--prompts=", *argv], description="")
    return rl_workload(rl, cfg.ranks, longest_prompt=cfg.longest_prompt)


def table(plan: MemoryPlan, device_bytes: int) -> Table:
    """What each phase needs."""
    work = plan.workload
    title = f"one of {work.world_size} ranks, EP {work.ep} (estimated; experts {IMBALANCE}x uneven)"
    made = Table(title=title, caption=_seats(work))
    for column in (
        "phase",
        "held before, GB",
        "peak of tensors, GB",
        "with the rest, GB",
        "device",
    ):
        made.add_column(column, justify="left" if column == "phase" else "right")
    for phase, held in plan.phases.items():
        total = plan.total(phase)
        made.add_row(
            *(phase, f"{held.before / 1e9:.1f}", f"{held.peak / 1e9:.1f}", f"{total / 1e9:.1f}"),
            f"{total / device_bytes:.0%}",
        )
    return made


def _seats(work: Workload) -> str | None:
    if work.rollout is None:
        return None
    generator = work.rollout.generator
    tokens = work.num_cache_blocks * generator.block_size
    return (
        f"KV cache {work.cache_bytes / 1e9:.1f} GB: {tokens:,} tokens, "
        f"{tokens // generator.max_num_seqs:,} for each of {generator.max_num_seqs} seats"
    )


def _recipe_config(name: str) -> type[Any]:
    """The `Config` of a recipe, by its path: torchtune installs a package `recipes` of its own."""
    path = Path(__file__).resolve().parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"compass_recipe_{name}", path)
    assert spec is not None, "it is a Python file"
    assert spec.loader is not None, "and so it has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # type hints are looked up there
    spec.loader.exec_module(module)
    return module.Config
