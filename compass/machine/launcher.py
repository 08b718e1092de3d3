"""The command `compass`: a recipe or tool by its name, on the processes of this machine.

    compass rl --nproc-per-node 2 --config configs/rl/debug.toml
    compass doctor data prompts.jsonl
    compass copy rl my_rl.py        a recipe to edit; or configs/rl/debug.toml my.toml
    compass run my_rl.py --nproc-per-node 2 --config configs/rl/debug.toml

It ends as its ranks do: in one line, with their exit code. For several machines there is torchrun
(docs/launch.md).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals, signal

from compass.cli import FAILED, INTERRUPTED, exit_on_user_error
from compass.errors import UserError
from compass.machine.shipped import config_file, shipped_folder, shipped_programs

_PROCESSES = ("--nproc-per-node", "--nproc_per_node")
SECONDS_TO_END = 10.0
"""After one rank has failed, the others, which may wait for it, get this long."""


def main() -> None:
    """Do what the command line says."""
    exit_on_user_error(lambda: sys.exit(run(sys.argv[1:])))


def run(words: Sequence[str]) -> int:
    """The exit code of `compass WORDS`.

    Raises:
        UserError: no such word, or processes that are no number.
    """
    if not words or words[0] in ("-h", "--help"):
        recipes, tools = (", ".join(shipped_programs(f)) for f in ("recipes", "tools"))
        print(f"{__doc__}\nrecipes: {recipes}\ntools: {tools}")
        return 0
    word, *rest = words
    if word == "copy":
        return copy(rest)
    if word == "run":
        if not rest:
            raise UserError("compass run FILE.py ...: name the file")
        word, *rest = rest
        path = Path(word)
        if not path.is_file():
            raise UserError(f"{path} does not exist; compass copy rl {path} makes one")
        return launch_ranks(path, rest)
    if word in shipped_programs("tools"):
        return subprocess.run(
            [sys.executable, shipped_folder("tools") / f"{word}.py", *rest]
        ).returncode
    return launch_ranks(recipe(word), rest)


def recipe(name: str) -> Path:
    """The file of a recipe."""
    recipes = shipped_programs("recipes")
    if name not in recipes:
        words = (*recipes, *shipped_programs("tools"), "copy", "run")
        raise UserError(f"compass has no {name!r}; it has {', '.join(words)}")
    return shipped_folder("recipes") / f"{name}.py"


def copy(words: Sequence[str]) -> int:
    """Hand out a recipe or a configuration."""
    if len(words) != 2:
        raise UserError(
            "compass copy RECIPE FILE.py, or configs/RECIPE/NAME.toml FILE.toml: name what to copy "
            "and a new file"
        )
    what, target = words[0], Path(words[1])
    is_config = what.endswith(".toml")
    source = config_file(Path(what)) if is_config else recipe(what)
    if not source.is_file():
        raise UserError(f"{what} does not come with Compass; it has {', '.join(_configs())}")
    if target.exists():
        raise UserError(f"{target} is there already; choose another name")
    shutil.copy(source, target)
    use = f"--config {target}" if is_config else f"compass run {target} ..."
    print(f"{target} is a copy of {what}: edit it, then {use}")
    return 0


def _configs() -> list[str]:
    folder = shipped_folder("configs")
    return sorted(f"configs/{p.relative_to(folder).as_posix()}" for p in folder.rglob("*.toml"))


def launch_ranks(path: Path, words: Sequence[str]) -> int:
    """Run a recipe on `--nproc-per-node` processes, one by default; the first failure's exit code.

    Signals reach every rank, which ends as it would by itself.
    """
    num_ranks, flags = split_processes(words)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path), *flags],
            env={"OMP_NUM_THREADS": "1", **os.environ, **world}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]

    def pass_on(number: int, _: object) -> None:
        for rank in ranks:
            rank.send_signal(Signals(number))

    signal(SIGTERM, pass_on)
    signal(SIGINT, lambda number, frame: None)  # the terminal sends it to every rank itself
    return wait_for(ranks)


def split_processes(words: Sequence[str]) -> tuple[int, list[str]]:
    """How many ranks, and the recipe's own flags."""
    flags: list[str] = []
    number = "1"
    left = list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=")
        if name not in _PROCESSES:
            flags.append(word)
        elif has_value:
            number = value
        else:
            number = left.pop(0) if left else ""
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--nproc-per-node {number!r} must be a number from 1")
    return int(number), flags


def wait_for(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or one has failed and the others had their time to."""
    deadline: float | None = None
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(codes) and deadline is None:
            deadline = time.monotonic() + SECONDS_TO_END
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    ended_itself = [code for code in codes if code is not None and code > 0]
    if ended_itself:
        return min(ended_itself, key=lambda code: (code == INTERRUPTED, code == FAILED, -code))
    return FAILED if any(codes) else 0


if __name__ == "__main__":
    main()
