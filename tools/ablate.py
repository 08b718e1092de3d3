"""Run a small matrix of RL runs, settings by seeds, and compare them.

    python tools/ablate.py --config configs/rl/debug.toml --vary loss=grpo,gspo,espo \\
        --seeds 0,1,2 --eval runs/demo/data/eval.jsonl --max-tokens 400000 --target 0.8 \\
        --output runs/ablation

Every combination of the `--vary` axes (and of the settings of `--variants`, if given) is trained
once per seed by recipes/rl.py. Started again, finished runs are kept and an interrupted one goes
on from its checkpoint. Writes to the output folder: one folder per run; `report.md` and
`report.json`, mean and range over seeds; one PNG of learning curves per metric.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ablations.report import (
    CURVES,
    CellResult,
    as_json,
    as_markdown,
    judged_by,
    plot_curves,
    run_result,
)

from compass.cli import exit_on_user_error
from compass.errors import UserError
from compass.jsonl import read_jsonl
from compass.machine.shipped import shipped_folder

RECIPE = shipped_folder("recipes") / "rl.py"

Settings = tuple[tuple[str, str], ...]
"""(flag of the recipe, value) pairs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Built by `plan`."""

    label: str
    seed: int
    folder: Path
    command: tuple[str, ...]


def main() -> None:
    """Run what is not finished, then report on everything."""
    args = parse_args(sys.argv[1:])
    if not args.config.is_file():
        raise UserError(f"--config {args.config}: no such file")
    runs = plan(args)
    if args.dry_run:
        for run in runs:
            print(shlex.join(run.command))
        return
    config_text = args.config.read_text(encoding="utf-8")
    with ThreadPoolExecutor(args.jobs) as executor:
        futures = [executor.submit(execute, run, config_text) for run in runs]
        try:
            for future in futures:
                future.result()
        finally:
            executor.shutdown(cancel_futures=True)
    report(runs, args)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises UserError for a flag that is unknown, missing or malformed."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="TOML file of recipes/rl.py")
    add("--vary", action="append", default=[], metavar="NAME=A,B", help="an axis; repeatable")
    add("--variants", type=Path, help="TOML file: one table of settings per named variant")
    add("--fix", action="append", default=[], metavar="NAME=VALUE", help="in every run; repeatable")
    add("--seeds", type=_integers, default=(0,), metavar="0,1,2", help="of each combination")
    add("--output", type=Path, required=True, help="folder of the runs and the report")
    add("--eval", type=Path, help="prompt file for the held-out accuracy")
    add("--target", type=float, help="accuracy whose cost in steps and tokens is reported")
    add("--max-tokens", type=int, help="end every run after this many generated tokens")
    add("--nproc-per-node", type=int, default=1, help="ranks of each run")
    add("--jobs", type=int, default=1, help="runs at once")
    add("--dry-run", action="store_true", help="print the commands of all runs, and run nothing")
    args = parser.parse_args(argv)
    for name in ("nproc_per_node", "jobs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    return args


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def plan(args: argparse.Namespace) -> list[Run]:
    """Every run, all seeds of a combination together."""
    fixed: Settings = tuple(_assignment(text) for text in args.fix)
    if args.eval is not None:
        fixed += (("eval.held_out.data", str(args.eval)),)
    if args.max_tokens is not None:
        fixed += (("max_generated_tokens", str(args.max_tokens)),)
    runs = []
    for label, settings in combinations(args.vary, args.variants):
        for seed in args.seeds:
            folder = args.output / re.sub(r"[^\w.=+-]+", "_", label) / f"seed_{seed}"
            flags = (*fixed, *settings, ("seed", str(seed)), ("run_dir", str(folder)))
            command = (
                *_launcher(args.nproc_per_node),
                *(str(RECIPE), "--config", str(args.config), "--resume"),
                *(f"--{name}={value}" for name, value in flags),
            )
            runs.append(Run(label=label, seed=seed, folder=folder, command=command))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError("two combinations have the same name; are values or seeds repeated?")
    return runs


def _launcher(num_ranks: int) -> tuple[str, ...]:
    """What goes before the recipe; a single rank needs no torchrun."""
    if num_ranks == 1:
        return (sys.executable,)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*torchrun, f"--nproc-per-node={num_ranks}")


def combinations(axes: Sequence[str], variants_file: Path | None) -> Iterator[tuple[str, Settings]]:
    """Label and settings of every combination."""
    choices: list[list[tuple[str, Settings]]] = []
    if variants_file is not None:
        choices.append([(name, settings) for name, settings in _variants(variants_file)])
    for axis in axes:
        name, values = _assignment(axis)
        choices.append([(f"{name}={v}", ((name, v),)) for v in values.split(",")])
    for chosen in itertools.product(*choices):
        label = ", ".join(label for label, _ in chosen)
        yield label or "base", tuple(pair for _, settings in chosen for pair in settings)


def execute(run: Run, config_text: str) -> None:
    """Train, unless this very run is finished already.

    Raises:
        UserError: the folder holds a run with other settings, or the recipe failed.
    """
    record = run.folder / "run.json"
    wanted = {"command": list(run.command[1:]), "config": config_text}
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if {name: found[name] for name in wanted} != wanted:
            raise UserError(
                f"{run.folder} was run with other settings; choose another --output or remove it"
            )
        if found["finished"]:
            return
    run.folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(wanted | {"finished": False}, indent=2) + "\n")
    print(f"{run.label}, seed {run.seed}: started", flush=True)
    started = time.monotonic()
    with (run.folder / "log.txt").open("a", encoding="utf-8") as log:
        code = subprocess.run(run.command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise UserError(
            f"{run.label}, seed {run.seed} failed{_complaint(run.folder / 'log.txt')}; all it said "
            f"is in {run.folder / 'log.txt'}"
        )
    if not (run.folder / "model").exists():  # a signal ends a run well
        raise UserError(f"{run.label}, seed {run.seed} was stopped; start this again to go on")
    seconds = time.monotonic() - started
    done = wanted | {"finished": True, "seconds": seconds}
    record.write_text(json.dumps(done, indent=2) + "\n")
    print(f"{run.label}, seed {run.seed}: {seconds:.0f} s", flush=True)


def _complaint(log: Path) -> str:
    """The one line of a user mistake, if the recipe ended with one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    mistakes = [line for line in lines if line.startswith("error: ")]
    return f" ({mistakes[-1]})" if mistakes else ""


def report(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Write `report.json`, `report.md` and the pictures; print the table."""
    curves: dict[str, list[list[Mapping[str, Any]]]] = {}
    results: dict[str, list[Any]] = {}
    for run in runs:
        rows = _merged(row for _, row in read_jsonl(run.folder / "metrics.jsonl"))
        curves.setdefault(run.label, []).append(rows)
        results.setdefault(run.label, []).append(run_result(rows, run.seed, args.target))
    cells = [CellResult(label=label, runs=tuple(found)) for label, found in results.items()]
    judge = judged_by([row for seeds in curves.values() for rows in seeds for row in rows])
    settings = {
        "command": sys.argv,
        "judged_by": judge,
        "target": args.target,
        "seeds": args.seeds,
        "max_tokens": args.max_tokens,
    }
    table = as_markdown(cells, args.target, judge)
    (args.output / "report.json").write_text(json.dumps(as_json(cells, settings), indent=2) + "\n")
    (args.output / "report.md").write_text(table, encoding="utf-8")
    for metric in CURVES:
        plot_curves(curves, metric, args.output / f"{metric.replace('/', '_')}.png")
    print(table, end="")


def _merged(rows: Iterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row per step: a step may be logged in several lines."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _variants(file: Path) -> Iterator[tuple[str, Settings]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"--variants {file}: {e.strerror}; give the path of a TOML file") from e
    except tomllib.TOMLDecodeError as e:
        raise UserError(f"{file} is not valid TOML: {e}") from e
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name} is not a table; write [{name}] and settings below it")
        yield name, tuple(_flattened(table))


def _flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{text!r} is not NAME=VALUE; NAME is a flag of recipes/rl.py without --")
    return name, value


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    exit_on_user_error(main)
