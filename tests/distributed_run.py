"""Runs a function on several ranks: one spawned process each, gloo on CPU.

A rank spends seconds on imports, so a test module starts one world and checks many things in it.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 150.0
"""A world that takes longer hangs: it is killed, and the test fails."""


def run_ranks(body: Callable[..., Any], folder: Path, world_size: int, *args: Any) -> list[Any]:
    """What `body(rank, *args)` returned, by rank. Fails when it raised on any."""
    place = Path(tempfile.mkdtemp(dir=folder))
    codes = _spawn(body, place, world_size, args)
    assert codes == [0] * world_size, f"exit codes {codes}; see the captured stderr"
    return [pickle.loads((place / f"{rank}.pickle").read_bytes()) for rank in range(world_size)]


def exit_codes(body: Callable[..., Any], folder: Path, world_size: int, *args: Any) -> list[int]:
    """How each rank's process ended; minus the signal's number when one killed it."""
    return _spawn(body, Path(tempfile.mkdtemp(dir=folder)), world_size, args)


def _spawn(body: Callable[..., Any], place: Path, world_size: int, args: tuple) -> list[int]:
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_rank_main, args=(body, place, rank, world_size, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in ranks:
        process.kill()
        process.join()
    return [process.exitcode for process in ranks if process.exitcode is not None]


def _rank_main(
    body: Callable[..., Any], place: Path, rank: int, world_size: int, args: tuple
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(place / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    result = body(rank, *args)
    (place / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
