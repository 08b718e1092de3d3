"""A process group of one."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from compass.distributed import ParallelConfig, Topology, init_topology


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield init_topology(ParallelConfig(device="cpu"))
    dist.destroy_process_group()
