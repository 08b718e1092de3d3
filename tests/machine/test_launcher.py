"""`compass` ends as its ranks do: in one line, with their exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.machine.launcher import recipe, run, split_processes
from compass.machine.shipped import config_file, shipped_folder

COMPASS = [sys.executable, "-m", "compass.machine.launcher"]


def ended(*words, cwd=None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMPASS, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


def test_a_mistake_in_a_flag_is_one_line_on_two_ranks():
    code, out, err = ended("rl", "--nproc-per-node", 2, "--unknown", 1)
    assert (code, out) == (2, "")
    assert err == "error: unknown flag --unknown; --help lists all of them\n"


RANKS = """
import os, sys, time
rank = int(os.environ["RANK"])
if sys.argv[1] == "both":
    print("rank", rank, "of", os.environ["WORLD_SIZE"], flush=True)
elif sys.argv[1] == "one" and rank == 1:
    sys.exit(2)
elif sys.argv[1] == "one":
    time.sleep(1000)
elif sys.argv[1] == "killed" and rank == 0:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("how", "code"), [("both", 0), ("one", 2), ("killed", 1)])
def test_the_exit_code_is_that_of_the_ranks(tmp_path, monkeypatch, how, code):
    (tmp_path / "ranks.py").write_text(RANKS)
    got, out, err = ended("run", tmp_path / "ranks.py", "--nproc-per-node=2", how)
    assert (got, err) == (code, "")
    assert sorted(out.splitlines()) == (["rank 0 of 2", "rank 1 of 2"] if how == "both" else [])


def test_a_recipe_is_handed_out_once(tmp_path):
    copied = tmp_path / "my_rl.py"
    assert run(["copy", "rl", str(copied)]) == 0
    assert copied.read_text() == recipe("rl").read_text()
    with pytest.raises(UserError, match="is there already"):
        run(["copy", "rl", str(copied)])


def test_a_configuration_is_found_by_its_name_and_handed_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("configs/sft/debug.toml")
    shipped = config_file(name)
    assert shipped == shipped_folder("configs") / "sft" / "debug.toml"
    assert run(["copy", str(name), "my.toml"]) == 0
    assert Path("my.toml").read_text() == shipped.read_text()
    name.parent.mkdir(parents=True)
    name.write_text("")
    assert config_file(name) == name, "one that is here goes first"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ppo"], "compass has no 'ppo'; it has .*rl, sft, ablate"),
        (["copy", "rl"], "name what to copy and a new file"),
        (
            ["copy", "configs/rl/none.toml", "x"],
            "none.toml does not come with Compass; it",
        ),
        (["run"], "name the file"),
        (["run", "none.py"], "none.py does not exist"),
        (["rl", "--nproc-per-node", "two"], "'two' must be a number"),
        (["rl", "--nproc-per-node"], "'' must be a number"),
    ],
)
def test_a_mistake_of_its_own_names_the_remedy(words, complaint):
    with pytest.raises(UserError, match=complaint):
        run(words)


def test_processes_are_taken_out_of_the_flags_of_the_recipe():
    assert split_processes(["--a", "1", "--nproc_per_node", "3", "--b"]) == (3, ["--a", "1", "--b"])
    assert split_processes(["--nproc-per-node=2"]) == (2, [])
    assert split_processes([]) == (1, [])
