"""Many generator replicas, simulated: what scheduling, overlap and FP8 are worth on long tails.

    python tools/simulate.py                            (minutes; all six scenarios, eight seeds)
    python tools/simulate.py --plots docs/figures --json
    python tools/simulate.py --lengths.seen-share 0     (no prompt was ever met before)
    python tools/simulate.py --cost scale.json          (output of tools/bench.py scale --json)

First the simulator must reproduce the makespan of real runs of the generator, in this process,
within 10 % (exit code 1 if it does not). A replica's step cost is then an assumption from data
sheets, unless `--cost` gives a measured one; no figure printed here was measured on a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench import versions
from rich.console import Console
from rich.table import Table
from simulation.cost import ReplicaAssumptions, assumed_cost, read_cost
from simulation.plots import plot_makespans, plot_slots
from simulation.step import PAPER, ScenarioResult, ScoringAssumptions, composite, run_scenario
from simulation.validation import MAX_ERROR, Validation, validate
from simulation.workload import SCENARIOS, LengthLaw, Scenario

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError

LIMIT = 1.08
NUM_ABOVE_LIMIT = 4
"""In how many scenarios predicted longest-first must beat the even split by `LIMIT`; in no scenario
may it be slower."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/simulate.py`."""

    json: bool = False
    """End with one line of JSON."""
    scenarios: tuple[str, ...] = tuple(scenario.name for scenario in SCENARIOS)
    """Which to run."""
    num_seeds: int = 8
    """Workloads per scenario; every policy meets the same."""
    first_seed: int = 100
    """Policies were chosen on seeds 0 to 3: others judge them."""
    validate: bool = True
    """Reproduce a real run first."""
    cost: Path | None = None
    """JSON of `tools/bench.py scale`: a step's cost in place of the assumed one. The composite,
    which needs bfloat16 and FP8, is then left out."""
    plots: Path | None = None
    """Folder for PNGs."""
    lengths: LengthLaw = field(default_factory=LengthLaw)
    """How lengths are drawn, and how much of them is known beforehand."""
    replica: ReplicaAssumptions = field(default_factory=ReplicaAssumptions)
    """The device that a step's cost is assumed for."""
    scoring: ScoringAssumptions = field(default_factory=ScoringAssumptions)
    """Verifiers and detokenisation."""

    def __post_init__(self) -> None:
        if self.first_seed < 0:
            raise UserError(f"first_seed={self.first_seed} must be 0 or more")
        names = {scenario.name for scenario in SCENARIOS}
        for name in self.scenarios:
            if name not in names:
                raise UserError(f"no scenario {name!r}; choose from {', '.join(sorted(names))}")
        if self.num_seeds < 1 or not self.scenarios:
            raise UserError("at least one scenario and one seed are needed")


def main(cfg: Config) -> None:
    """Validate, simulate, print."""
    started = time.perf_counter()
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # a pipe says 80, which would cut the tables
    validation = None
    if cfg.validate:
        validation = validate()
        console.print(validation_table(validation))
        if not validation.is_good:
            console.print(
                f"a makespan is off by more than {MAX_ERROR:.0%}: nothing follows from it"
            )
            raise SystemExit(1)
    chosen = [scenario for scenario in SCENARIOS if scenario.name in cfg.scenarios]
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.num_seeds)
    cost, kv_tokens = assumed_cost("fp8", cfg.replica)
    if cfg.cost is not None:
        cost = read_cost(cfg.cost)
    results = []
    for scenario in chosen:
        result = run_scenario(scenario, cfg.lengths, seeds, cost, kv_tokens, cfg.scoring)
        console.print(scenario_table(result))
        results.append(result)
    parts = {}
    if cfg.cost is None:
        for scenario in chosen:
            parts[scenario.name] = composite(scenario, cfg.lengths, seeds, cfg.replica, cfg.scoring)
        console.print(composite_table(parts))
    speedups = verdict(console, results)
    if cfg.plots is not None:
        cfg.plots.mkdir(parents=True, exist_ok=True)
        plot_makespans(results, cfg.plots / "simulate_makespans.png")
        plot_slots(chosen[-1], cfg.lengths, seeds[0], cost, kv_tokens, cfg.plots)
    if cfg.json:
        figures = as_json(cfg, validation, results, parts, speedups)
        print(json.dumps({**figures, "seconds": time.perf_counter() - started}))


def verdict(console: Console, results: Sequence[ScenarioResult]) -> list[float]:
    """Print whether the limits are met; returns the speed-ups, best first."""
    speedups = sorted((r.speedup("predicted longest-first") for r in results), reverse=True)
    num_above = sum(speedup >= LIMIT for speedup in speedups)
    console.print(
        f"predicted longest-first over even split: {speedups[-1]:.3f} to {speedups[0]:.3f}; "
        f">= {LIMIT} in {num_above} of {len(speedups)} scenarios "
        f"({'met' if num_above >= NUM_ABOVE_LIMIT else 'MISSED'}), slower in "
        f"{sum(speedup < 1 for speedup in speedups)} "
        f"({'met' if speedups[-1] >= 1 else 'MISSED'})"
    )
    return speedups


def validation_table(validation: Validation) -> Table:
    """Real and simulated makespans."""
    table = Table(title="simulator against the generator: debug-4m, 128 requests, 32 seats, CPU")
    for column in ("order", "real s", "simulated s", "error"):
        table.add_column(column, justify="right")
    for t in validation.traces:
        table.add_row(
            t.name, f"{t.real_seconds:.3f}", f"{t.simulated_seconds:.3f}", f"{t.error:+.1%}"
        )
    return table


def scenario_table(result: ScenarioResult) -> Table:
    """Each policy on one scenario."""
    s = result.scenario
    table = Table(
        title=f"{s.name}: at most {s.max_tokens:,} tokens, sigma {s.sigma}, {s.num_slots} slots x "
        f"{s.num_replicas} replicas, {s.num_prompts} x {s.group_size} completions"
    )
    table.add_column("policy")
    for column in ("written s", "x even split", "worst seed", "idle", "serial s", "overlapped s"):
        table.add_column(column, justify="right")
    even = result.written("even split")
    for name, of_seeds in result.by_policy.items():
        written = result.written(name)
        means = {
            key: float(np.mean([getattr(r, key) for r in of_seeds]))
            for key in ("idle_share", "serial", "overlapped")
        }
        table.add_row(
            name,
            f"{written.mean():,.0f}",
            f"{even.mean() / written.mean():.3f}",
            f"{(even / written).min():.3f}",
            f"{means['idle_share']:.1%}",
            f"{means['serial']:,.0f}",
            f"{means['overlapped']:,.0f}",
        )
    ideal = np.array(result.ideal)
    table.add_row(
        *("ideal", f"{ideal.mean():,.0f}", f"{even.mean() / ideal.mean():.3f}"),
        *(f"{(even / ideal).min():.3f}", "", "", ""),
    )
    return table


def composite_table(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """Cumulative speed-ups of the four parts, the paper's beside them."""
    table = Table(title="the four parts, cumulative (bfloat16, serial, whole groups at first)")
    table.add_column("scenario")
    for name in PAPER:
        table.add_column(name, justify="right")
    for scenario, factors in parts.items():
        table.add_row(scenario, *(f"{factors[name]:.2f}" for name in PAPER))
    mean = {
        name: float(np.exp(np.mean([np.log(factors[name]) for factors in parts.values()])))
        for name in PAPER
    }
    table.add_row("geometric mean", *(f"{mean[name]:.2f}" for name in PAPER))
    table.add_row("arXiv 2512.07710", *(f"{factor:.2f}" for factor in PAPER.values()))
    return table


def as_json(
    cfg: Config,
    validation: Validation | None,
    results: Sequence[ScenarioResult],
    parts: Mapping[str, Mapping[str, float]],
    speedups: Sequence[float],
) -> dict[str, Any]:
    """Everything printed, and what was assumed."""
    return {
        "bench": "simulate",
        "ratio": speedups[min(NUM_ABOVE_LIMIT, len(speedups)) - 1],
        "limit": LIMIT,
        "worst_ratio": speedups[-1],
        "worst_limit": 1.0,
        "validation": None
        if validation is None
        else {t.name: {**asdict(t), "error": t.error} for t in validation.traces},
        "scenarios": {r.scenario.name: _as_json(r) for r in results},
        "composite": parts,
        "assumed": {
            key: asdict(value)
            for key, value in (
                ("lengths", cfg.lengths),
                ("replica", cfg.replica),
                ("scoring", cfg.scoring),
            )
        },
        "versions": versions(),
    }


def _as_json(result: ScenarioResult) -> dict[str, Any]:
    scenario: Scenario = result.scenario
    return {
        **asdict(scenario),
        "ideal": result.ideal,
        "policies": {
            name: [asdict(seconds) for seconds in of_seeds]
            for name, of_seeds in result.by_policy.items()
        },
    }


if __name__ == "__main__":
    exit_on_user_error(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
