"""AdamW, its schedule, and gradient clipping that is right under expert parallelism."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from compass.distributed import Topology
from compass.errors import UserError
from compass.models.parallel import is_expert, local_part
from compass.train.optim_config import OptimConfig, OptimGroupConfig

LR_SCALE = "lr_scale"
"""Of a parameter group: the schedule's learning rate times this is its own."""


def make_optimizer(policy: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the policy's shards.

    Experts and dense parameters live on different meshes, which one fused update cannot mix, so
    they are separate parameter groups; so are norms, which are not decayed, and what the config
    groups. Frozen parameters lose their gradient here, and are in no group.
    """
    groups: dict[Hashable, list[nn.Parameter]] = {}
    options: dict[Hashable, dict[str, float]] = {}
    for name, parameter in policy.named_parameters():
        own = cfg.group_of(name)
        parameter.requires_grad_(own is None or not own.frozen)
        if not parameter.requires_grad:
            continue
        of_one = _options(own, cfg, decays=parameter.ndim > 1)
        key = (is_expert(name), *of_one.values())
        groups.setdefault(key, []).append(parameter)
        options[key] = of_one
    return _class_of(cfg)(
        [{"params": parameters} | options[key] for key, parameters in groups.items()],
        lr=cfg.lr,
        betas=cfg.betas,
        eps=cfg.eps,
    )


def _class_of(cfg: OptimConfig) -> Callable[..., torch.optim.Optimizer]:
    if cfg.kind == "adamw8bit":
        from torchao.optim import AdamW8bit  # seconds, and a page of warnings

        return AdamW8bit
    return partial(torch.optim.AdamW, fused=True)  # a third of the loop's time on CPU


def take_step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step at the schedule's learning rate."""
    for group in optimizer.param_groups:
        own = lr * group[LR_SCALE]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
    on_cpu = all(p.device.type == "cpu" for g in optimizer.param_groups for p in g["params"])
    # torchao compiles its update. On CPU that takes a compiler and longer than a debug run.
    with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
        optimizer.step()


def _options(own: OptimGroupConfig | None, cfg: OptimConfig, *, decays: bool) -> dict[str, float]:
    """`weight_decay`, and by what the schedule's learning rate is multiplied."""
    decay = cfg.weight_decay if decays else 0.0
    if own is None:
        return {"weight_decay": decay, LR_SCALE: 1.0}
    return {
        "weight_decay": decay if own.weight_decay is None else own.weight_decay,
        LR_SCALE: 1.0 if own.lr is None else own.lr / cfg.lr,
    }


def check_groups(policy: nn.Module, cfg: OptimConfig) -> None:
    """Make sure that each of the config's groups has parameters of its own, and one is trained.

    Raises:
        UserError: a pattern that matches no parameter, a parameter that two match, or all frozen.
    """
    names = [name for name, _ in policy.named_parameters()]
    for name, group in cfg.groups.items():
        if not any(map(group.matches, names)):
            raise UserError(
                f"optim.groups.{name}: pattern {group.pattern!r} matches no parameter; their names "
                f"are like {', '.join(names[:3])} and {names[-1]}"
            )
    for parameter in names:
        own = [name for name, group in cfg.groups.items() if group.matches(parameter)]
        if len(own) > 1:
            raise UserError(
                f"optim.groups.{' and '.join(own)} both match {parameter}; narrow a pattern"
            )
    if all((own_group := cfg.group_of(name)) and own_group.frozen for name in names):
        raise UserError("optim.groups freezes every parameter; leave one to train")


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
