"""What holds for every test: one thread each, and no deadline on a machine that may be busy."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from compass.distributed import Topology

# Before torch is imported anywhere. Sums run in one order, and several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("compass", deadline=None)
settings.load_profile("compass")


@pytest.fixture
def alone() -> "Iterator[Topology]":
    """A process group of one inside the test's own process."""
    import torch.distributed as dist

    from compass.distributed import ParallelConfig, init_topology

    yield init_topology(ParallelConfig(device="cpu"))
    dist.destroy_process_group()
