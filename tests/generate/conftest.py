"""A process group of one, and a small random policy."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from compass.distributed import ParallelConfig, Topology, init_topology
from compass.models.policy import Policy
from tests.generate.tiny_policy import TINY, make_policy


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield init_topology(ParallelConfig(device="cpu"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(TINY, seed=0)
