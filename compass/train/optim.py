"""AdamW, its schedule, and gradient clipping that is right under expert parallelism."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from compass.distributed import Topology
from compass.models.parallel import is_expert, local_part
from compass.train.optim_config import OptimConfig


def make_optimizer(policy: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the policy's shards.

    Experts and dense parameters live on different meshes, which one fused update cannot mix, so
    they are separate parameter groups; so are norms, which are not decayed.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        key = (is_expert(name), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": cfg.weight_decay if decays else 0.0}
            for (_, decays), parameters in groups.items()
        ],
        lr=cfg.lr,
        betas=cfg.betas,
        eps=cfg.eps,
        fused=True,  # a third of the loop's time on CPU
    )


def learning_rate(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    done = (step - cfg.warmup_steps) / max(1, num_steps - cfg.warmup_steps)
    done = min(1.0, done)
    shape = 1 - done if cfg.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return cfg.lr * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * shape)


def clip_grad_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, topology: Topology
) -> Tensor:
    """Scale gradients to a global norm of at most `max_norm`; returns the norm before, a scalar
    that is the same on every rank. Collective.

    Every rank holds a different shard of every parameter, dense or expert, except that replicas
    hold the same ones: so the global square is the sum of local squares over the replica count.
    A norm that is not finite leaves the gradients alone.
    """
    gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
    norm = _global_norm(gradients, topology, torch.float32)
    if not norm.isfinite():  # squares of what float32 holds can be more than it holds
        norm = _global_norm(gradients, topology, torch.float64)
    if norm.isfinite() and norm > max_norm:
        for gradient in gradients:
            gradient.mul_((max_norm / norm).to(gradient.dtype))
    return norm


def _global_norm(gradients: Sequence[Tensor], topology: Topology, dtype: torch.dtype) -> Tensor:
    """Rows are summed up in `dtype` without a copy of the gradient, and their sums in float64.
    Collective."""
    square = torch.zeros((), dtype=torch.float64, device=topology.device)
    for gradient in gradients:
        rows = torch.linalg.vector_norm(gradient, dim=-1, dtype=dtype)
        square += rows.double().square().sum()
    return (topology.all_reduce_sum(square) / topology.dp_replicate).sqrt()
