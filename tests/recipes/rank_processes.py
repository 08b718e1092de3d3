"""Programs run as torchrun runs them: one process per rank, which meet at a store outside them.

The store listens on a port the kernel chose, so tests may run side by side. Every wait has a limit
after which all ranks are killed: a hang fails the test that caused it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parent.parent.parent
LIMIT_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the program ended on one rank."""

    code: int
    stdout: str
    stderr: str


@contextmanager
def rendezvous(world_size: int) -> Iterator[dict[str, str]]:
    """The environment variables that are the same for all ranks."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    del store


@contextmanager
def started_ranks(
    command: Sequence[str | Path], world_size: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """`python COMMAND` once per rank, from the root of the project; killed at the end."""
    with rendezvous(world_size) as variables:
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def run_ranks(command: Sequence[str | Path], world_size: int) -> list[Ended]:
    """`python COMMAND` once per rank, to its end."""
    with started_ranks(command, world_size) as processes:
        outputs = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
        return [
            Ended(code=process.returncode, stdout=stdout, stderr=stderr)
            for process, (stdout, stderr) in zip(processes, outputs, strict=True)
        ]


def wait_for_step(run_dir: Path, step: int, rank: subprocess.Popen[str]) -> None:
    """Until a run has logged `step`. The console may leave it out; the metrics do not."""
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
        assert rank.poll() is None, rank.communicate()
        time.sleep(0.01)
