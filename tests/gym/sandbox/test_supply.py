"""A level that cannot be had is refused at the start, in one line with the remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass.errors import UserError
from compass.gym.sandbox import command, sandbox
from compass.gym.sandbox.supply import SandboxConfig, Sandboxes

ROOT = Path(__file__).parents[3]
REFUSING = "bwrap: setting up uid map: Permission denied"


def put_bwrap(folder: Path, version: str) -> None:
    """One of that version, which may not make namespaces."""
    file = folder / "bwrap"
    file.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "bubblewrap {version}" && exit\n'
        f'echo "{REFUSING}" >&2\nexit 1\n'
    )
    file.chmod(0o755)


@pytest.fixture
def only_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that programs are looked for in, first."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.fixture(autouse=True)
def _found_anew() -> Iterator[None]:
    command._bwrap.cache_clear()
    yield
    command._bwrap.cache_clear()


def refusal(config: SandboxConfig) -> str:
    with pytest.raises(UserError) as caught:
        Sandboxes(config).close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_namespaces_that_are_not_allowed(only_ours: Path) -> None:
    put_bwrap(only_ours, "0.11.0")
    told = refusal(SandboxConfig())
    assert REFUSING in told
    assert "allow unprivileged user namespaces (docs/security.md)" in told


def test_a_bwrap_that_is_too_old_gives_way_to_the_package(
    only_ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_bwrap(only_ours, "0.6.1")
    Sandboxes(SandboxConfig()).close()
    command._bwrap.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refusal(SandboxConfig())
    assert f"{only_ours / 'bwrap'} is 0.6.1, older than 0.8: install bubblewrap" in told


def test_no_bwrap_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "there is no bwrap: install bubblewrap" in refusal(SandboxConfig())


def test_no_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "installed_packages", lambda: "/nowhere")
    told = refusal(SandboxConfig(level="files", memory_mb=1023))
    assert "No module named 'landlock'" in told
    assert "install landlock==1.0.0.dev5" in told


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("level", "half", "level is 'half'; choose one of full, files, none"),
        ("test_seconds", 0.0, "test_seconds is 0.0; it must be above 0"),
        ("program_seconds", float("nan"), "program_seconds is nan"),
        ("memory_mb", 0, "memory_mb is 0; it must be at least 1"),
        ("num_ready", 0, "num_ready is 0"),
    ],
)
def test_a_setting_out_of_range(field: str, value: object, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        SandboxConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("domain", "code"), [("code", 2), ("chain", 0)])
def test_only_a_domain_that_runs_programs_needs_it(domain: str, code: int, only_ours: Path) -> None:
    put_bwrap(only_ours, "0.11.0")
    row = {"id": 1, "completion": "1", "answer": "1", "tests": [{"stdin": "", "stdout": ""}]}
    (only_ours / "in.jsonl").write_text(json.dumps(row))
    words = ["--domain", domain, "--input", "in.jsonl", "--output", "out.jsonl"]
    done = subprocess.run(
        [sys.executable, ROOT / "tools/score.py", *words],
        cwd=only_ours,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert (REFUSING in done.stderr) == (code == 2)
    assert done.stderr.count("\n") == (1 if code else 0)


def test_the_private_tmp_does_not_hide_a_python_that_is_installed_below_it() -> None:
    """A clone in /tmp: what comes later on bwrap's command line lies on top."""
    lines = [command.sandbox_command("full"), command.launch_command("full", "")]
    for words in (line for line in lines if "--tmpfs" in line):
        assert words.index("--tmpfs") < words.index("--ro-bind")
