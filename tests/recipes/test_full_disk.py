"""A full disk is one line and exit code 2, nothing half-written stays, and what was there is whole:
for checkpoints, exports, logs and results alike, on a disk that really is full."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.case_runner import exit_code, run_cases
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import Ended
from tests.recipes.small_disk import SmallDisk, small_disk

CHAT = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "3"}]}
PROMPT = {"id": "a", "problem": "How many apples?", "answer": "3"}
FOR_LOGS = 150_000
"""Room for config, metrics and events, and for neither a checkpoint nor an export."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def chats(random_model: Path, tmp_path: Path, disk: SmallDisk) -> dict[str, Any]:
    """Flags of a run of `sft` on the small disk."""
    return {
        "model": random_model,
        "data.path": write_lines(tmp_path / "chats.jsonl", [CHAT, CHAT]),
        "data.num_examples_per_step": 2,
        "data.max_len": 100,
        "parallel.device": "cpu",
        "num_steps": 1,
        "checkpoint.interval": 1,
        "run_dir": disk.folder / "run",
    }


@pytest.fixture
def prompts(random_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Flags that `generate` and `evaluate` have in common."""
    return {
        "model": random_model,
        "max_completion_tokens": 4,
        "num_samples": 40,
        "parallel.device": "cpu",
    }


def words(recipe: str, flags: dict[str, Any]) -> tuple[str, ...]:
    return (recipe, *(f"--{name}={value}" for name, value in flags.items()))


def left_over(folder: Path) -> list[str]:
    """Whatever is half-written has one of these in its name."""
    return [p.name for p in folder.rglob("*") if "tmp" in p.name or "partial" in p.name]


def is_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(chats, disk, random_model, capsys):
    assert exit_code(words("sft", chats)) == 0
    run_dir = chats["run_dir"]
    exported = (run_dir / "model/model.safetensors").read_bytes()
    capsys.readouterr()
    longer = chats | {"num_steps": 2, "resume": True}
    with disk.filled(leave=FOR_LOGS):
        assert exit_code(words("sft", longer)) == 2
        is_one_line(capsys, "cannot write the checkpoint", "step_000002", disk.complaint)
        assert not left_over(run_dir)
        assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["step_000001"]
        assert (run_dir / "model/model.safetensors").read_bytes() == exported
    assert exit_code(words("sft", longer)) == 0, "with room again, it goes on"
    assert [line["step"] for line in read_lines(run_dir / "metrics.jsonl")] == [1, 2]


def test_an_export_that_does_not_fit_leaves_nothing(chats, disk, capsys):
    chats |= {"checkpoint.interval": 0}
    with disk.filled(leave=FOR_LOGS):
        assert exit_code(words("sft", chats)) == 2
        is_one_line(capsys, "cannot write", "run/model: ", disk.complaint)
        assert not left_over(chats["run_dir"])
        assert not (chats["run_dir"] / "model").exists()


def test_a_run_folder_that_cannot_be_written_is_named(chats, disk, capsys):
    with disk.filled(leave=0):
        assert exit_code(words("sft", chats)) == 2
        is_one_line(capsys, "cannot write", "config.toml", disk.complaint)
        assert not left_over(disk.folder)


def test_metrics_that_do_not_fit_leave_whole_lines(chats, disk, capsys):
    chats |= {"checkpoint.interval": 0, "num_steps": 100_000}
    with disk.filled(leave=40_000):
        assert exit_code(words("sft", chats)) == 2
        is_one_line(capsys, "cannot write the logs", disk.complaint)
        text = (chats["run_dir"] / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert steps


def test_results_that_do_not_fit_leave_nothing(prompts, disk, tmp_path, capsys):
    rows = [PROMPT | {"id": str(number)} for number in range(4)]
    data = write_lines(tmp_path / "prompts.jsonl", rows)
    output = {"generate": disk.folder / "out.jsonl", "evaluate": disk.folder / "evaluation"}
    data_flags = {
        "generate": {"prompts": data},
        "evaluate": {"data": data, "gym.num_workers": 1},
    }
    for recipe, room in (("generate", 8_192), ("evaluate", 16_384)):
        capsys.readouterr()
        flags = prompts | data_flags[recipe] | {"output": output[recipe]}
        with disk.filled(leave=room):
            assert exit_code(words(recipe, flags)) == 2
            is_one_line(capsys, "cannot write", ".jsonl", disk.complaint)
            assert not left_over(disk.folder)
    assert not output["generate"].exists()
    assert not list(output["evaluate"].glob("*.samples.jsonl"))
    assert not (output["evaluate"] / "summary.json").exists()


@pytest.fixture
def on_two_ranks(chats, disk, tmp_path) -> dict[str, list[Ended]]:
    export = chats | {"checkpoint.interval": 0, "run_dir": disk.folder / "other"}
    cases = {"checkpoint": words("sft", chats), "export": words("sft", export)}
    with disk.filled(leave=FOR_LOGS + 20_000):
        return run_cases(cases, tmp_path / "outputs", 2)


def test_every_rank_ends_with_code_2_and_one_of_them_says_why(on_two_ranks, disk):
    for first, second in on_two_ranks.values():
        assert (first.code, second.code) == (2, 2), first.stderr + second.stderr
        assert disk.complaint in first.stderr
        assert first.stderr.count("\n") == 1
        assert second.stderr == ""
    assert not left_over(disk.folder)
