"""SIGTERM and SIGINT end a recipe in one line: training finishes its step, saves it and says how to
go on; nothing is half-written; a rank that is stuck in a collective ends too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import (
    LIMIT_SECONDS,
    ROOT,
    Ended,
    run_ranks,
    started_ranks,
    wait_for_step,
)

WORLD = 2
CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("How many apples?", "three"), ("How many pears?", "seven"))
]
PROMPTS = [{"id": str(i), "problem": f"{i} apples?", "answer": "37"[i % 2]} for i in range(8)]
ENDLESS = 100_000
GO_ON = r"go on with the same command and --resume\n"
WEIGHTS = "model/model.safetensors"


@pytest.fixture
def sft(random_model: Path, tmp_path: Path) -> list[str]:
    values = {
        "model": random_model,
        "data.path": write_lines(tmp_path / "chats.jsonl", CHATS),
        "data.num_examples_per_step": 2,
        "data.max_len": 100,
        "parallel.device": "cpu",
        "optim.lr": 0.01,
        "checkpoint.interval": 2,
        "checkpoint.keep_last": 1,
    }
    return ["recipes/sft.py", *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture
def rl(guessing_model: Path, tmp_path: Path) -> list[str]:
    values = {
        "config": ROOT / "configs/rl/debug_gsm8k.toml",
        "model": guessing_model,
        "prompts": write_lines(tmp_path / "prompts.jsonl", PROMPTS),
        "checkpoint.interval": 50,
    }
    return ["recipes/rl.py", *(f"--{name}={value}" for name, value in values.items())]


def endings(ranks: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    outputs = [rank.communicate(timeout=LIMIT_SECONDS) for rank in ranks]
    return [
        Ended(code=rank.returncode, stdout=out, stderr=err)
        for rank, (out, err) in zip(ranks, outputs, strict=True)
    ]


def stopped_after(ended: Ended, name: str) -> int:
    """The step that the one line on stderr says is saved."""
    line = rf"stopped by {name} after step (\d+); step (\d+) is saved: {GO_ON}"
    found = re.fullmatch(line, ended.stderr)
    assert found, ended.stderr
    assert found[1] == found[2]
    return int(found[1])


def test_a_signal_to_all_ranks_saves_the_step_and_nothing_is_lost(sft, tmp_path):
    command = [*sft, "--run_dir", str(tmp_path / "run")]
    with started_ranks([*command, f"--num_steps={ENDLESS}"], WORLD) as ranks:
        wait_for_step(tmp_path / "run", 3, ranks[0])
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        first, second = endings(ranks)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert second.stderr == ""
    step = stopped_after(first, "SIGTERM")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == [f"step_{step:06}"]
    assert not (tmp_path / "run/model").exists()

    more = f"--num_steps={step + 2}"
    resumed = run_ranks([*command, more, "--resume"], WORLD)
    whole = run_ranks([*sft, more, "--run_dir", str(tmp_path / "whole")], WORLD)
    assert [rank.code for rank in resumed + whole] == [0] * 4, resumed[0].stderr + whole[0].stderr
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    steps = [line["step"] for line in read_lines(tmp_path / "run/metrics.jsonl")]
    assert steps == list(range(1, step + 3))


def test_a_signal_to_one_rank_stops_all(rl, tmp_path):
    command = [*rl, "--run_dir", str(tmp_path), f"--num_steps={ENDLESS}"]
    with started_ranks(command, WORLD) as ranks:
        wait_for_step(tmp_path, 1, ranks[0])
        ranks[1].send_signal(signal.SIGINT)
        first, second = endings(ranks)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    step = stopped_after(first, "a signal to another rank")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step_{step:06}"]
    logged = read_lines(tmp_path / "metrics.jsonl")
    assert logged[-1]["step"] == step, "the step that was finished is logged"
    assert all(line["reward/invalid"] == 0 for line in logged), "its verifiers were not disturbed"


def test_a_process_group_that_gets_ctrl_c_keeps_its_verifiers_until_the_step_is_done(rl, tmp_path):
    """Plain python, as under a terminal: the signal goes to every process of the group."""
    command = [*rl, "--parallel.ep=1", "--run_dir", str(tmp_path), f"--num_steps={ENDLESS}"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_step(tmp_path, 1, process)
        for worker in children(process.pid):
            os.kill(worker, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        (ended,) = endings([process])
    finally:
        process.kill()
    assert ended.code == 0
    stopped_after(ended, "SIGINT")
    assert all(line["reward/invalid"] == 0 for line in read_lines(tmp_path / "metrics.jsonl"))


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def test_a_step_that_takes_longer_than_the_grace_names_the_last_checkpoint(sft, tmp_path):
    """The other rank stands still, so this one waits in a collective, where no handler runs."""
    command = [*sft, "--run_dir", str(tmp_path / "run"), f"--num_steps={ENDLESS}"]
    with started_ranks([*command, "--checkpoint.grace_seconds=1"], WORLD) as ranks:
        wait_for_step(tmp_path / "run", 3, ranks[0])
        ranks[1].send_signal(signal.SIGSTOP)
        ranks[0].send_signal(signal.SIGTERM)
        _, err = ranks[0].communicate(timeout=LIMIT_SECONDS)
    assert ranks[0].returncode == 0, err
    line = rf"stopped by SIGTERM in step (\d+); step (\d+) is saved: {GO_ON}"
    found = re.fullmatch(line, err)
    assert found, err
    assert int(found[2]) in range(2, int(found[1]), 2)
    assert (tmp_path / f"run/checkpoints/step_{int(found[2]):06}/manifest.json").exists()


def test_a_second_signal_ends_at_once(sft, tmp_path):
    command = [*sft, "--run_dir", str(tmp_path / "run"), f"--num_steps={ENDLESS}"]
    with started_ranks([*command, "--checkpoint.grace_seconds=1000"], WORLD) as ranks:
        wait_for_step(tmp_path / "run", 3, ranks[0])
        ranks[1].send_signal(signal.SIGSTOP)
        ranks[0].send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            ranks[0].wait(1.0)
        ranks[0].send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = ranks[0].communicate(timeout=LIMIT_SECONDS)
        assert time.monotonic() - began < 100
    assert ranks[0].returncode == 128 + signal.SIGINT
    assert err.startswith("stopped by SIGINT in step ")
    assert err.count("\n") == 1


@pytest.mark.long
def test_under_torchrun_ctrl_c_saves_the_step(sft, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, *sft, f"--run_dir={tmp_path}", f"--num_steps={ENDLESS}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_step(tmp_path, 3, process)
        os.killpg(process.pid, signal.SIGINT)
        (ended,) = endings([process])
    finally:
        process.kill()
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("stopped by")]
    step = stopped_after(Ended(code=0, stdout="", stderr=f"{line}\n"), "SIGINT")
    assert (tmp_path / f"checkpoints/step_{step:06}/manifest.json").exists()


def signalled(name: str, moment: str, recipe: Sequence[str]) -> Ended:
    (ended,) = run_ranks(["-m", "tests.recipes.signals_itself", name, moment, *recipe], 1)
    return ended


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_generation_and_evaluation_end_in_one_line_and_leave_nothing_half_written(
    name, random_model, tmp_path
):
    prompts = write_lines(tmp_path / "prompts.jsonl", PROMPTS)
    flags = [f"--model={random_model}", "--parallel.device=cpu", "--max_completion_tokens=40"]
    before = {"prompts.jsonl"}
    generated = signalled(
        name, "generation", ["generate", *flags, f"--prompts={prompts}", f"--output={tmp_path}/out"]
    )
    evaluated = signalled(
        name, "generation", ["evaluate", *flags, f"--data={prompts}", f"--output={tmp_path}/eval"]
    )
    for ended in (generated, evaluated):
        assert ended.code == 128 + signal.Signals[name]
        assert ended.stderr == (
            f"stopped by {name} before it was done: what was not finished is not there\n"
        )
    assert {p.name for p in tmp_path.iterdir()} - before == {"eval"}
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {"config.toml", "environment.json"}


def test_a_signal_before_the_first_step_and_in_the_export_are_one_line_too(rl, sft, tmp_path):
    early = ["rl", *rl[1:], "--parallel.ep=1", f"--run_dir={tmp_path / 'early'}"]
    ended = signalled(
        "SIGTERM", "generation", [*early, f"--eval.held_out.data={tmp_path}/prompts.jsonl"]
    )
    assert ended.code == 0
    assert ended.stderr == (
        "stopped by SIGTERM after step 0; nothing is saved yet: start it again with --resume\n"
    )
    late = ["sft", *sft[1:], "--num_steps=1", f"--run_dir={tmp_path / 'late'}"]
    ended = signalled("SIGTERM", "export", late)
    assert ended.code == 0
    assert stopped_after(ended, "SIGTERM") == 1
    assert sorted(p.name for p in (tmp_path / "late").iterdir()) == [
        *("checkpoints", "config.toml", "environment.json", "metrics.jsonl", "tensorboard")
    ]
    (resumed,) = run_ranks(["recipes/sft.py", *late[1:], "--resume"], 1)
    assert resumed.code == 0, resumed.stderr
    assert (tmp_path / "late" / WEIGHTS).exists()
