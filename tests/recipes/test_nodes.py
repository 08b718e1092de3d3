"""docs/launch.md's command for many nodes, with two agents that meet at an endpoint of this one."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from compass.gym.byte_tokenizer import write_byte_tokenizer
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import ROOT


@pytest.mark.long
def test_two_agents_with_the_same_command_are_one_run(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": chat}] * 8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    flags = ["--model", "debug", "--tokenizer", str(tmp_path / "tokenizer"), "--num_steps", "2"]
    flags += ["--data.path", str(chats), "--data.num_examples_per_step", "4", "--resume"]
    flags += ["--parallel.ep", "2", "--parallel.device", "cpu", "--run_dir", str(tmp_path / "run")]
    command = [*torchrun, "--rdzv-endpoint", endpoint, "recipes/sft.py", *flags]
    agents = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for agent in agents:
        _, stderr = agent.communicate(timeout=120)
        assert agent.returncode == 0, stderr.decode()
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "model" / "config.json").exists()
