"""Ranks on devices of their own, two where there are two: SFT, RL, checkpoints, export, and what
they settle on the host."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from compass.distributed import ParallelConfig, init_topology
from tests.recipes.course import take_course
from tests.recipes.model_directories import write_guessing_model

pytestmark = pytest.mark.gpu


def test_a_course_on_devices(tmp_path) -> None:
    """With experts on two ranks where there are two devices, and decode steps recorded where they
    can be: then ranks must record and replay alike."""
    can_record = torch.cuda.get_device_capability() >= (9, 0)
    write_guessing_model(tmp_path / "start")
    whole, resumed = take_course(
        tmp_path / "start",
        tmp_path,
        device="cuda",
        world_size=min(2, torch.cuda.device_count()),
        settings={"policy.dtype": "bfloat16", "generator.cuda_graphs": str(can_record).lower()},
    )
    for name, weight in whole.items():
        assert weight.isfinite().all()
        # Kernels with atomics: not bit for bit. Two steps of 1e-3 move a weight by 2e-3 at most.
        torch.testing.assert_close(resumed[name].float(), weight.float(), rtol=0, atol=5e-3)


def test_ranks_settle_things_on_the_host() -> None:
    """A group made as meshes make theirs takes tensors of both kinds."""
    init_topology(ParallelConfig(device="cuda"))
    group = dist.new_group([0])
    on_host, on_device = torch.tensor([3, 1]), torch.tensor([3, 1], device="cuda")
    for tensor in (on_host, on_device):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
        assert tensor.tolist() == [3, 1]
