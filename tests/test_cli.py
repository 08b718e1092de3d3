"""A user's mistake ends a command with one line and exit code 2."""

from __future__ import annotations

import pytest

from compass.cli import exit_on_user_error
from compass.errors import UserError


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
