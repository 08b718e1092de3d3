"""Messages from one rank to another, and numbers that all draw from, without a collective: nobody
need be listening."""

from __future__ import annotations

import pickle
from typing import Any

import torch.distributed as dist

from compass.distributed import Topology

GLANCES_PER_LOOK = 16
"""How often `glance` is called for each time it asks the store: every rank's questions go to one
process, which a question before every generator step of each would keep busy."""


class Mailbox:
    """One box for each rank, in the process group's key-value store.

    A message is taken once and its key deleted. A poster draws a ticket of the box it posts to, so
    looking for news costs one question to the store, whatever the number of ranks. Made once by
    every rank, before any posts.
    """

    def __init__(self, topology: Topology) -> None:
        self._store = dist.PrefixStore("mailbox", topology.store)
        self.world_size = topology.world_size
        self._rank = topology.rank
        self._next_ticket = 0
        self._num_counters = 0
        self._num_glances = 0

    def post(self, rank: int, message: Any) -> None:
        """Leave a message, which is pickled, in the box of `rank`."""
        ticket = self._store.add(f"{rank}/tickets", 1) - 1
        self._store.set(f"{rank}/{ticket}", pickle.dumps(message))  # type: ignore[arg-type]

    def take(self) -> list[Any]:
        """What has come since the last call, in order of tickets, without waiting. A message whose
        elder neighbour is still on its way waits for it."""
        messages = []
        while self._store.check([key := f"{self._rank}/{self._next_ticket}"]):
            messages.append(pickle.loads(self._store.get(key)))
            self._store.delete_key(key)
            self._next_ticket += 1
        return messages

    def glance(self) -> list[Any]:
        """`take`, now and then: for a caller that comes by often and has other things to do."""
        self._num_glances += 1
        return [] if self._num_glances % GLANCES_PER_LOOK else self.take()

    def counter(self) -> Counter:
        """A new counter that all ranks share: the n-th that one of them asks for is the n-th of
        every other. None may ask for the next but one while another still draws from this one."""
        self._num_counters += 1
        if self._rank == 0:
            self._store.delete_key(f"counters/{self._num_counters - 2}")
        return Counter(self._store, f"counters/{self._num_counters}")


class Counter:
    """Gives each number from 0 to one rank. Built by `Mailbox.counter`."""

    def __init__(self, store: dist.Store, key: str) -> None:
        self._store = store
        self._key = key

    def draw(self) -> int:
        """The next number."""
        return self._store.add(self._key, 1) - 1
