"""The trainer on an accelerator without numbers: every loss stays on one device, and the host reads
next to nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compass.distributed import Topology
from compass.models.policy import build_model
from compass.rl.pack import Trained, filler_microbatch, pack_microbatch
from compass.rl.zero_variance.stages import ZeroVarianceConfig, ZeroVarianceStages
from compass.train.correction import CorrectionConfig
from compass.train.espo import EspoConfig
from compass.train.loss import sft_loss
from compass.train.optim_config import OptimConfig
from compass.train.policy_loss import PolicyLossConfig
from compass.train.trainer import Trainer
from compass.types import Microbatch
from tests.fake_accelerator import ACCELERATOR, Watch, accelerator, elsewhere, move
from tests.tiny_batch import SPEC, random_tokens

__all__ = ["elsewhere"]

ITEMS = [Trained(tokens=random_tokens(seed=i), advantage=1.0 - i) for i in range(3)]


class Alone(Topology):
    """One rank, without a process group."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)

    all_reduce_max = all_reduce_sum

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]


TOPOLOGY = Alone(
    rank=0,
    world_size=1,
    device=ACCELERATOR,
    dp_replicate=1,
    ep=1,
    dense_mesh=None,
    expert_fsdp_mesh=None,
    ep_mesh=None,
)


def without_numbers(microbatch: Microbatch) -> Microbatch:
    """On the CPU still, as packed."""
    tensors = {f.name: getattr(microbatch, f.name) for f in fields(microbatch)}
    return replace(
        microbatch, **{n: torch.empty_like(t) for n, t in tensors.items() if torch.is_tensor(t)}
    )


def run(
    loss_name: str,
    *,
    microbatch: Microbatch | None = None,
    espo: EspoConfig | None = None,
    correction: str = "off",
    flat: bool = False,
    recompute: bool = False,
) -> tuple[Watch, list[str]]:
    """Score a microbatch, and add its gradient: what that asked of the device, and the metrics."""
    packed = microbatch or pack_microbatch(ITEMS, SPEC, replay=True)
    stages = ZeroVarianceStages(ZeroVarianceConfig(), seed=0, group_size=2, completion_limits=(20,))
    with accelerator() as watch:
        policy = build_model(SPEC)
        move(policy, torch.bfloat16, trains=True)
        for block in policy.blocks:
            block.recompute = recompute
        trainer = Trainer(
            policy,
            TOPOLOGY,
            OptimConfig(),
            num_steps=3,
            correction=CorrectionConfig(mode=correction).resolve(quantised=False),
        )
        batch = without_numbers(packed)
        old, live_TLK = trainer.score(batch)
        assert {old.logprobs.device, old.entropy.device, live_TLK.device} == {ACCELERATOR}
        loss = sft_loss
        if loss_name != "sft":
            cfg = PolicyLossConfig(espo=espo or EspoConfig())
            loss = cfg.choose(loss_name, max_completion_tokens=20)([old.entropy], TOPOLOGY)
        watch.reads.clear()
        watch.uploads.clear()
        means, _ = trainer.forward_backward(
            batch,
            loss,
            num_rollouts=3,
            num_tokens=30,
            old=old,
            flat_advantages=stages.flat_advantages if flat else None,
        )
        gradients = [p.grad for p in policy.parameters()]
    assert all(g is not None and g.device == ACCELERATOR for g in gradients)
    return watch, list(means._sums)


def watched(loss_name: str, changes: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Reads by place, and elements sent by type."""
    watch, _ = run(loss_name, **changes)
    return dict(watch.reads), {str(dtype): n for dtype, n in watch.uploads.items()}


LOSSES = ("espo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "sft")
VARIANTS: dict[str, dict[str, Any]] = {
    "a filler": {"microbatch": filler_microbatch(SPEC, replay=True)},
    "cuts over the batch": {"espo": EspoConfig(scope="batch")},
    "tis": {"correction": "tis"},
    "mis_token": {"correction": "mis_token"},
    "mis_sequence": {"correction": "mis_sequence"},
    "flat groups": {"flat": True},
    "recomputed": {"recompute": True},
}


ONE_READ = {"models/layers/router.py": 1}
"""Whether recorded routes are possible."""


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_stays_on_the_device_and_is_read_once(loss, elsewhere) -> None:
    reads, _ = elsewhere(watched, loss, {})
    assert reads == ONE_READ


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_stays_on_the_device_and_is_read_once(variant, elsewhere) -> None:
    reads, _ = elsewhere(watched, "espo", VARIANTS[variant])
    assert reads == ONE_READ


def test_routes_travel_once_and_as_bytes(elsewhere) -> None:
    _, uploads = elsewhere(watched, "espo", {})
    num_tokens = sum(item.num_fed_tokens for item in ITEMS)
    num_sequences, num_scored = len(ITEMS), sum(int(i.tokens.loss_mask.sum()) for i in ITEMS)
    assert uploads["torch.uint8"] == num_tokens * SPEC.num_moe_layers * SPEC.top_k
    # Tokens, positions; rows, targets and sequences of loss tokens (the last twice at most).
    assert uploads["torch.int64"] <= 2 * num_tokens + 4 * num_scored + num_sequences
