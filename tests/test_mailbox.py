"""Every message is taken once, by whom it was posted to, and nobody waits for anybody."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from compass.distributed import Topology, build_topology
from compass.mailbox import Mailbox
from tests.distributed_run import run_ranks

WORLD, NUM_MESSAGES = 3, 20


def post_and_take(rank: int) -> list[tuple[int, int]]:
    """Each rank posts to the others and itself, taking what has come in between."""
    topology = build_topology(rank, WORLD, device=torch.device("cpu"))
    mailbox = Mailbox(topology)
    taken = []
    for number in range(NUM_MESSAGES):
        for receiver in range(WORLD):
            mailbox.post(receiver, (rank, receiver, number))
        taken += mailbox.take()
    while len(taken) < WORLD * NUM_MESSAGES:
        taken += mailbox.take()
    topology.barrier()
    assert mailbox.take() == []
    assert all(receiver == rank for _, receiver, _ in taken)
    return [(sender, number) for sender, _, number in taken]


def test_every_message_is_taken_once_and_in_its_senders_order(tmp_path: Path) -> None:
    for taken in run_ranks(post_and_take, tmp_path, WORLD):
        assert sorted(taken) == [(s, n) for s in range(WORLD) for n in range(NUM_MESSAGES)]
        for sender in range(WORLD):
            assert [n for s, n in taken if s == sender] == list(range(NUM_MESSAGES))


def test_an_empty_box_is_empty_and_leaves_no_key_behind(alone: Topology) -> None:
    mailbox = Mailbox(alone)
    assert mailbox.take() == []
    mailbox.post(0, {"a": 1})
    mailbox.post(0, None)
    keys = alone.store.num_keys()
    assert mailbox.take() == [{"a": 1}, None]
    assert alone.store.num_keys() == keys - 2
    assert mailbox.take() == []


def draw_from_counters(rank: int) -> list[list[int]]:
    mailbox = Mailbox(build_topology(rank, WORLD, device=torch.device("cpu")))
    drawn = []
    for round_ in range(4):
        counter = mailbox.counter()
        drawn.append([counter.draw() for _ in range(5 + rank + round_)])
        dist.barrier()
    return drawn


def test_each_number_of_a_counter_is_drawn_by_one_rank(tmp_path: Path) -> None:
    by_rank = run_ranks(draw_from_counters, tmp_path, WORLD)
    for of_round in zip(*by_rank, strict=True):
        numbers = sorted(number for of_rank in of_round for number in of_rank)
        assert numbers == list(range(len(numbers)))
        assert all(of_rank == sorted(of_rank) for of_rank in of_round)


def test_counters_that_nobody_draws_from_any_more_leave_no_key_behind(alone: Topology) -> None:
    mailbox = Mailbox(alone)
    mailbox.counter().draw()
    keys = alone.store.num_keys()
    for _ in range(5):
        mailbox.counter().draw()
    assert alone.store.num_keys() <= keys + 1
