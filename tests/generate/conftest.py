"""A process group of one, and a small random policy."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from compass.distributed import ParallelConfig, Topology, init_topology
from compass.models.parallel import init_policy
from compass.models.policy import Policy, build_model
from compass.models.specs import ModelSpec

TINY = ModelSpec(
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    moe_intermediate_size=24,
    num_experts=6,
    top_k=2,
    dense_layers=(1,),
    max_seq_len=64,
    # Large enough for peaked distributions and decisive routers.
    init_std=0.3,
)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield init_topology(ParallelConfig(device="cpu"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(TINY, seed=0)


def make_policy(spec: ModelSpec, seed: int) -> Policy:
    model = build_model(spec, "cpu")
    init_policy(model, seed)
    return model
