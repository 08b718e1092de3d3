"""Runs a list of recipe launches, one after the other, in one process per rank.

A recipe costs seconds to import. Here it is paid once per rank: each case joins its own process
group, runs `launch` as the recipe's last line does, and ends in the `SystemExit` it ends in.
An exit code of 1 ends the process with it, since `launch` then waits for nobody.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from compass.config import parse
from compass.distributed import launch
from tests.recipes.rank_processes import Ended, rendezvous, run_ranks

Command = tuple[str, ...]
"""The recipe's name and its arguments."""


def run_cases(
    cases: Mapping[str, Command], folder: Path, world_size: int
) -> dict[str, list[Ended]]:
    """How each case ended on each rank. `folder` is for the outputs of the processes.

    Fails when a case hangs or ends a process early, naming the case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stores:
        ports = [stores.enter_context(rendezvous(world_size))["MASTER_PORT"] for _ in cases]
        plan = [
            {"name": name, "port": port, "command": [*map(str, command)]}
            for (name, command), port in zip(cases.items(), ports, strict=True)
        ]
        (folder / "plan.json").write_text(json.dumps(plan))
        processes = run_ranks(["-m", "tests.recipes.case_runner", folder], world_size)
    for process in processes:
        assert process.code == 0, f"{process.stdout}\n{process.stderr}"
    return {name: [_ended(folder, name, rank) for rank in range(world_size)] for name in cases}


def _ended(folder: Path, name: str, rank: int) -> Ended:
    out, err, code = _files(folder, name, rank)
    return Ended(code=int(code.read_text()), stdout=out.read_text(), stderr=err.read_text())


def _files(folder: Path, name: str, rank: int) -> tuple[Path, Path, Path]:
    """Where one rank of a case leaves its stdout, stderr and exit code."""
    out, err, code = (folder / f"{name}-{rank}.{kind}" for kind in ("out", "err", "code"))
    return out, err, code


def main(folder: Path) -> None:
    """One rank's side: runs the plan in `folder`."""
    rank = int(os.environ["RANK"])
    for case in json.loads((folder / "plan.json").read_text()):
        print(f"rank {rank}: {case['name']}", flush=True)
        os.environ["MASTER_PORT"] = case["port"]
        out_file, err_file, code_file = _files(folder, case["name"], rank)
        with (
            out_file.open("w") as out,
            err_file.open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = exit_code(case["command"])
        code_file.write_text(str(code))


def exit_code(command: Sequence[str]) -> int:
    """What `python recipes/NAME.py ARGUMENTS` exits with."""
    recipe = importlib.import_module(f"recipes.{command[0]}")
    try:
        launch(lambda: recipe.main(parse(recipe.Config, command[1:], description=recipe.__doc__)))
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("launch returned")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
