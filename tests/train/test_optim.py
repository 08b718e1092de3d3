"""The schedule in closed form, gradient clipping as torch does it, and what decays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compass.models.parallel import init_policy
from compass.models.policy import build_model
from compass.train.optim import clip_grad_norm, learning_rate, make_optimizer
from compass.train.optim_config import OptimConfig
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
