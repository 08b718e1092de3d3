"""What a decode step asks of a device: how many kernels a layer, and never a number back."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from compass.distributed import build_topology
from compass.generate.attention import decode_step
from compass.generate.attention.decode_step import DecodeStep
from compass.generate.attention.kv_cache import KVCache
from compass.models.policy import build_model
from compass.models.specs import SPECS
from tests.fake_accelerator import ACCELERATOR, TwoKernels, accelerator, elsewhere, move

__all__ = ["elsewhere"]

ROWS = 128
SPEC = SPECS["30b-a3b"]
KERNELS_PER_LAYER = {1: 33, 2: 41, 8: 41}
"""By expert-parallel degree, attention's two and norms' four among them."""


class Inputs:
    """What a step finds on the device (`DecodeInputs`)."""

    def __init__(self, *, max_rows: int, max_blocks: int, device: torch.device) -> None:
        assert device == ACCELERATOR

    def tables(self, num_rows: int, num_blocks: int) -> torch.Tensor:
        return torch.empty((num_rows, num_blocks), dtype=torch.int32, device=ACCELERATOR)

    def tokens(self, num_rows: int) -> torch.Tensor:
        return torch.empty(num_rows, dtype=torch.int64, device=ACCELERATOR)

    positions = tokens


def watch_step(num_layers: int, ep: int) -> tuple[Counter[str], Counter[str]]:
    """Kernels and reads between a step's inputs and its logits. The other ranks are not there."""
    decode_step.DecodeInputs = Inputs
    spec = replace(SPEC, num_layers=num_layers)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ep)
    ep_mesh = build_topology(0, ep, device=torch.device("cpu"), ep=ep).ep_mesh
    with accelerator() as watch, torch.no_grad():
        model = build_model(spec)
        move(model, torch.bfloat16, ep=ep)
        for block in model.blocks:
            if ep_mesh is not None:
                block.moe.routed_experts.token_dispatcher.wire_meshes(ep_mesh=ep_mesh)
        cache = KVCache(
            spec, num_blocks=64, block_size=16, dtype=torch.bfloat16, device=ACCELERATOR
        )
        step = DecodeStep(model, cache, TwoKernels, max_rows=ROWS, device=ACCELERATOR, graphs=None)
        watch.kernels.clear()
        logits_BV = step._forward(ROWS, 1000)
    dist.destroy_process_group()
    assert logits_BV.shape == (ROWS, spec.vocab_size)
    assert logits_BV.device == ACCELERATOR
    return watch.kernels, watch.reads


@pytest.mark.parametrize("ep", KERNELS_PER_LAYER)
def test_a_layer_of_experts_launches_few_kernels_and_reads_no_number(ep, elsewhere) -> None:
    (two, reads), (four, _) = elsewhere(watch_step, 2, ep), elsewhere(watch_step, 4, ep)
    per_layer = {name: (four[name] - two[name]) / 2 for name in four}
    assert sum(per_layer.values()) <= KERNELS_PER_LAYER[ep], per_layer
    assert not reads
