"""The schedule in closed form, gradient clipping as torch does it, and what decays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compass.checkpoint.checkpointer import Checkpointer
from compass.checkpoint.config import CheckpointConfig
from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy, local_part, local_slice
from compass.models.policy import Policy, build_model
from compass.train.optim import (
    check_groups,
    clip_grad_norm,
    learning_rate,
    make_optimizer,
    take_step,
)
from compass.train.optim_config import OptimConfig, OptimGroupConfig
from tests.distributed_run import run_ranks
from tests.tiny_batch import SPEC

CONFIG = OptimConfig(lr=0.5, warmup_steps=4, min_lr_ratio=0.2)


# ---- schedule


def test_warmup_is_linear_and_ends_at_the_peak():
    rates = [learning_rate(step, 100, CONFIG) for step in range(4)]
    assert rates == [0.125, 0.25, 0.375, 0.5]


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(0, 100, replace(CONFIG, warmup_steps=0)) == 0.5


def test_constant_stays_at_the_peak():
    assert {learning_rate(step, 24, CONFIG) for step in range(4, 40)} == {0.5}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_goes_from_the_peak_through_the_middle_to_the_floor_and_stays(schedule):
    cfg = replace(CONFIG, schedule=schedule)
    assert learning_rate(4, 24, cfg) == 0.5
    assert learning_rate(14, 24, cfg) == pytest.approx(0.3)
    for step in (24, 25, 1000):
        assert learning_rate(step, 24, cfg) == pytest.approx(0.1)
    rates = [learning_rate(step, 24, cfg) for step in range(4, 25)]
    assert rates == sorted(rates, reverse=True)


def test_a_quarter_of_the_way_down():
    linear, cosine = (replace(CONFIG, schedule=s) for s in ("linear", "cosine"))
    assert learning_rate(9, 24, linear) == pytest.approx(0.1 + 0.4 * 0.75)
    assert learning_rate(9, 24, cosine) == pytest.approx(0.1 + 0.4 * (1 + math.sqrt(0.5)) / 2)


def test_a_schedule_shorter_than_its_warmup_is_defined():
    assert learning_rate(4, 3, replace(CONFIG, schedule="linear")) == 0.5


# ---- clipping


def parameters_with_gradients(scale: float) -> list[nn.Parameter]:
    noise = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=noise)
    parameters.append(nn.Parameter(torch.zeros(2)))  # took no part in the loss
    return parameters


@pytest.mark.parametrize("scale", [0.01, 3.0, 1e30])
def test_clipping_equals_torchs(scale, alone):
    ours, theirs = (parameters_with_gradients(scale) for _ in range(2))
    norm = clip_grad_norm(ours, 1.0, alone)
    for parameter in theirs:  # torch squares in the gradient's own precision
        parameter.data = parameter.data.double()
        if parameter.grad is not None:
            parameter.grad = parameter.grad.double()
    expected = nn.utils.clip_grad_norm_(theirs, 1.0)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=2e-6, atol=0)
    assert ours[-1].grad is None


@pytest.mark.parametrize("culprit", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_reported_and_left_alone(culprit, alone):
    parameters = parameters_with_gradients(3.0)
    assert parameters[1].grad is not None
    parameters[1].grad[2] = culprit
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    assert not clip_grad_norm(parameters, 1.0, alone).isfinite()
    for parameter, gradient in zip(parameters, before, strict=False):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.nan_to_num(7.0), gradient.nan_to_num(7.0))


class LargestDouble(TorchDispatchMode):
    """Elements of the largest float64 tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.numel = max(self.numel, result.numel())
        return result


def test_the_norm_copies_no_gradient_to_double_precision(alone):
    parameter = nn.Parameter(torch.zeros(7, 100))
    parameter.grad = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    with LargestDouble() as largest:
        clip_grad_norm([parameter], 1.0, alone)
    assert largest.numel <= 7


# ---- decay


def test_every_parameter_is_updated_once_and_norms_do_not_decay():
    policy = build_model(SPEC, "cpu")
    init_policy(policy, 0)
    optimizer = make_optimizer(policy, OptimConfig(lr=0.1, weight_decay=0.5))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, policy.parameters()))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for parameter in grouped:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in policy.named_parameters():
        kept = 1.0 if name.endswith("norm.weight") else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), kept * before[name])


# ---- groups


def grouped(**tables: OptimGroupConfig) -> OptimConfig:
    return OptimConfig(lr=0.1, weight_decay=0.5, groups=tables)


def test_a_group_has_a_learning_rate_and_decay_of_its_own_and_what_is_frozen_stays():
    """Gradients of zero leave the decay alone to be seen: 1 - lr x decay."""
    policy = build_model(SPEC, "cpu")
    init_policy(policy, 0)
    cfg = grouped(
        routers=OptimGroupConfig(pattern=r"router\.gate", lr=0.2),
        norms=OptimGroupConfig(pattern=r"norm\.weight$", weight_decay=0.25),
        embedding=OptimGroupConfig(pattern="^tok_embeddings", frozen=True),
    )
    check_groups(policy, cfg)
    optimizer = make_optimizer(policy, cfg)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    take_step(optimizer, cfg.lr)
    kept = {"gate": 1 - 0.2 * 0.5, "norm": 1 - 0.1 * 0.25, "tok_embeddings": 1.0, "": 1 - 0.1 * 0.5}
    for name, parameter in policy.named_parameters():
        factor = next(factor for part, factor in kept.items() if part in name)
        torch.testing.assert_close(parameter.detach(), factor * before[name])
        assert parameter.requires_grad == ("tok_embeddings" not in name)
    assert not any(p is policy.tok_embeddings.weight for p in optimizer.state)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": r"moe\.gate"}, r"optim.groups.a: pattern 'moe.*gate' matches no parameter; their"),
        ({"a": "router", "b": "gate"}, r"optim.groups.a and b both match layers.0.moe.router.gate"),
        ({"a": "."}, "freezes every parameter"),
    ],
)
def test_a_group_without_parameters_of_its_own_is_refused(groups, message):
    tables = {n: OptimGroupConfig(pattern=p, frozen=True) for n, p in groups.items()}
    with pytest.raises(UserError, match=message):
        check_groups(build_model(SPEC), grouped(**tables))


def test_a_pattern_that_is_none_and_a_frozen_group_with_a_rate_are_refused():
    with pytest.raises(UserError, match=r"pattern '\(' is no regular expression"):
        OptimGroupConfig(pattern="(")
    with pytest.raises(UserError, match="is frozen and has an lr"):
        OptimGroupConfig(pattern="x", frozen=True, lr=0.1)
    for name, value in (("lr", -1.0), ("lr", math.nan), ("weight_decay", math.inf)):
        with pytest.raises(UserError, match=f"pattern 'x' has {name}={value}"):
            OptimGroupConfig(pattern="x", **{name: value})
    with pytest.raises(UserError, match=r"optim.groups.a.lr=0.1 follows the schedule of optim.lr"):
        OptimConfig(lr=0.0, groups={"a": OptimGroupConfig(pattern="x", lr=0.1)})


# ---- 8 bits


def moved(kind: Any, num_steps: int) -> tuple[Tensor, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.linspace(-1, 1, 64 * 256).view(64, 256).clone())
    cfg = OptimConfig(lr=1e-2, weight_decay=0.1, kind=kind)
    optimizer = make_optimizer(nn.ParameterDict({"w": parameter}), cfg)
    start = parameter.detach().clone()
    for step in range(num_steps):
        noise = torch.Generator().manual_seed(step)
        parameter.grad = torch.randn(parameter.shape, generator=noise)
        take_step(optimizer, cfg.lr * (step + 1))
    return parameter.detach() - start, optimizer


def test_moments_in_8_bits_move_weights_nearly_as_those_in_float32_do():
    exact, _ = moved("adamw", 5)
    rounded, optimizer = moved("adamw8bit", 5)
    assert (rounded - exact).norm() < 0.03 * exact.norm()
    (state,) = optimizer.state.values()
    assert state["exp_avg"].codes.dtype == torch.uint8
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(5e-2)


def resumed_in_8_bits(rank: int, folder: Path) -> None:
    """Two steps, a checkpoint, two more; and the last two again from the checkpoint."""
    topology = build_topology(rank, 2, device=torch.device("cpu"), ep=2)
    one, other = (sharded_in_8_bits(topology) for _ in range(2))
    step_alike(*one, steps=range(2))
    checkpointer = Checkpointer(folder, topology, CheckpointConfig())
    path = checkpointer.save(2, *one, {})
    step_alike(*one, steps=range(2, 4))
    checkpointer.load(path, *other)
    step_alike(*other, steps=range(2, 4))
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(local_part(a), local_part(b))


def sharded_in_8_bits(topology: Topology) -> tuple[Policy, torch.optim.Optimizer]:
    spec = replace(SPEC, vocab_size=256, hidden_size=64)
    policy = build_policy(spec, topology, PolicyConfig(), lambda p: init_policy(p, 0))
    return policy, make_optimizer(policy, OptimConfig(kind="adamw8bit"))


def step_alike(policy: Policy, optimizer: torch.optim.Optimizer, *, steps: Iterable[int]) -> None:
    for step in steps:
        noise = torch.Generator().manual_seed(step)
        for parameter in policy.parameters():
            full = torch.randn(parameter.shape, generator=noise)
            parameter.grad = torch.zeros_like(parameter)
            local_part(parameter.grad).copy_(full[local_slice(parameter)])
        take_step(optimizer, 1e-3)


@pytest.mark.long
def test_8_bit_moments_resume_bit_for_bit(tmp_path):
    run_ranks(resumed_in_8_bits, tmp_path, 2, tmp_path / "checkpoints")
