"""A user's mistake ends a command with one line and exit code 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compass.cli import exit_on_user_error
from compass.errors import UserError

ROOT = Path(__file__).parents[1]


def test_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("file 'x'\n  is missing")

    with pytest.raises(SystemExit) as exit_:
        exit_on_user_error(main)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: file 'x' is missing\n"


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        exit_on_user_error(main)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT before it was done\n"


def test_other_errors_pass_through_and_success_returns() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    exit_on_user_error(lambda: None)


INTERRUPTED_IMPORT = """
import dataclasses, os, signal, time
from compass.distributed import read_flags

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    '''Nothing.'''

read_flags(Config, "")
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_a_signal_while_a_recipe_imports_is_one_line() -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 130
    assert ended.stderr.startswith("stopped by SIGINT before it was done")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "compass.machine.launcher", "--help"],
        ["-m", "compass.machine.launcher", "rl", "--help"],
        ["recipes/sft.py", "--help"],
        ["tools/score.py", "--help"],
    ],
)
def test_help_that_nobody_reads_to_its_end_ends_quietly(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")
