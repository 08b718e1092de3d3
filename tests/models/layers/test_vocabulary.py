"""Scores of targets against log_softmax, and that no more than a chunk of logits ever exists.

Shape legend: R scored rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compass.models.layers.vocabulary import ROWS_PER_CHUNK, score_targets
from tests.cuda_on_cpu import cuda_on_cpu

R, D, V = 23, 6, 50


@pytest.fixture(params=[1, 7, 23, 100])
def rows_per_chunk(request, monkeypatch) -> int:
    monkeypatch.setitem(ROWS_PER_CHUNK, "cpu", request.param)
    return request.param


def make_inputs(dtype: torch.dtype = torch.float32, num_rows: int = R) -> tuple[Tensor, ...]:
    """x_RD and weight_VD, which want gradients, and targets_R."""
    noise = torch.Generator().manual_seed(0)
    x_RD = torch.randn(num_rows, D, generator=noise).to(dtype).requires_grad_()
    # Logits up to about 20, so that a softmax without its maximum taken off would show.
    weight_VD = (4 * torch.randn(V, D, generator=noise)).to(dtype).requires_grad_()
    return x_RD, weight_VD, torch.randint(V, (num_rows,), generator=noise)


def by_log_softmax(x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, temperature: float):
    """log p of the targets and entropy, in float64, by the book."""
    log_p_RV = (x_RD.double() @ weight_VD.double().T / temperature).log_softmax(dim=-1)
    return log_p_RV[torch.arange(len(targets_R)), targets_R], -(log_p_RV.exp() * log_p_RV).sum(-1)


def upstream(num_rows: int) -> Tensor:
    return torch.linspace(-1, 1, num_rows)


@pytest.fixture(params=[False, True], ids=["as on CPU", "as on CUDA"])
def on_cuda(request) -> Iterator[None]:
    with cuda_on_cpu() if request.param else nullcontext():
        yield


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_log_softmax(rows_per_chunk, dtype, temperature):
    inputs = make_inputs(dtype)
    scores = score_targets(*inputs, temperature)
    logprobs_R, entropy_R = by_log_softmax(*inputs, temperature)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs.double(), logprobs_R, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy.double(), entropy_R, rtol=1e-5, atol=1e-5)
    assert not scores.entropy.requires_grad
    got, expected = (
        torch.autograd.grad((upstream(R) * values).sum(), inputs[:2])
        for values in (scores.logprobs, logprobs_R.float())
    )
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        rounding = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_entropy_is_that_of_its_definition(rows_per_chunk, dtype, temperature):
    """Together with the targets' own, as a loss with an entropy term has it."""
    inputs = make_inputs(dtype)
    scores = score_targets(*inputs, temperature, entropy_gradient=True)
    logprobs_R, entropy_R = by_log_softmax(*inputs, temperature)
    got, expected = (
        torch.autograd.grad((upstream(R) * of_R + upstream(R).flip(0) * h_R).sum(), inputs[:2])
        for of_R, h_R in (
            (scores.logprobs, scores.entropy),
            (logprobs_R.float(), entropy_R.float()),
        )
    )
    for one, other in zip(got, expected, strict=True):
        rounding = 2e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


class Shapes(TorchDispatchMode):
    """Shapes of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        outputs = function(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(output, Tensor):
                self.seen.add(tuple(output.shape))
        return outputs


def test_no_more_logits_exist_at_once_than_a_chunk_has(monkeypatch):
    monkeypatch.setitem(ROWS_PER_CHUNK, "cpu", 5)
    inputs = make_inputs()
    with Shapes() as shapes:
        scores = score_targets(*inputs, 1.0)
        (upstream(R) * scores.logprobs).sum().backward()
    logits = {shape[0] for shape in shapes.seen if shape[-1:] == (V,)} - {D}
    assert logits == {5, R % 5}


def test_no_rows_give_no_scores_and_gradients_of_zero():
    x_RD, weight_VD, targets_R = make_inputs(num_rows=0)
    scores = score_targets(x_RD, weight_VD, targets_R, 1.0)
    assert len(scores.logprobs) == len(scores.entropy) == 0
    scores.logprobs.sum().backward()
    assert weight_VD.grad is not None
    assert not weight_VD.grad.any()
    assert x_RD.grad is not None


def test_an_infinite_upstream_gradient_is_not_hidden():
    """The trainer skips a step whose gradient is not finite: it must get to see it."""
    x_RD, weight_VD, targets_R = make_inputs()
    grad_R = upstream(R)
    grad_R[3] = torch.inf
    scores = score_targets(x_RD, weight_VD, targets_R, 1.0)
    scores.logprobs.backward(grad_R)
    assert x_RD.grad is not None
    assert not x_RD.grad[3].isfinite().any()
    assert x_RD.grad[:3].isfinite().all()
