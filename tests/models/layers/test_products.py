"""Products of bfloat16 operands: exact sums, gradients that keep what cancels, nothing in float32.

Shape legend: R rows, D contracted width, V output width, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from compass.models.context import ForwardContext, RoutingTrace
from compass.models.layers import norm
from compass.models.layers.attention import PackedAttention
from compass.models.layers.products import wide_linear
from compass.models.layers.vocabulary import ROWS_PER_CHUNK, score_targets
from compass.models.specs import SPECS
from tests.cuda_on_cpu import cuda_on_cpu
from tests.fake_policy import fake_policy

BF16_STEP = 2**-8


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with cuda_on_cpu():
        yield


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_a_linear_and_its_gradients_are_those_of_float64(num_rows):
    x_RD, weight_VD = normal(num_rows, 40, seed=0), normal(30, 40, seed=1)
    inputs = [x.bfloat16().requires_grad_() for x in (x_RD, weight_VD)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out_RV, expected_RV = wide_linear(*inputs), exact[0] @ exact[1].T
    assert out_RV.dtype == torch.float32
    torch.testing.assert_close(out_RV.double(), expected_RV, rtol=1e-5, atol=1e-5)
    upstream = normal(num_rows, 30, seed=2)
    got = torch.autograd.grad(out_RV, inputs, upstream)
    expected = torch.autograd.grad(expected_RV, exact, upstream.double())
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=BF16_STEP, atol=1e-3)


def head_with_much_in_common() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of W differ by a hundredth of what they share. Those of trained heads share less."""
    weight_VD = normal(1, 16, seed=3) * 100 + normal(500, 16, seed=4)
    return normal(60, 16, seed=5) / 4, weight_VD, torch.arange(60) * 8


def gradients_in_float64(
    x_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, temperature: float, upstream_R: Tensor
) -> tuple[Tensor, ...]:
    exact = [x.detach().double().requires_grad_() for x in (x_RD, weight_VD)]
    log_p_RV = (exact[0] @ exact[1].T / temperature).log_softmax(-1)
    return torch.autograd.grad(
        log_p_RV[torch.arange(len(targets_R)), targets_R], exact, upstream_R.double()
    )


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_all_classes_share_cancels_from_the_gradient_of_scores(temperature, monkeypatch):
    """Slopes rounded once to bfloat16 would leave 2^-9 of a hundred times too much: a tenth of the
    whole. What remains is the rounding of the result."""
    monkeypatch.setitem(ROWS_PER_CHUNK, "cpu", 25)
    x_RD, weight_VD, targets_R = head_with_much_in_common()
    inputs = [x.bfloat16().requires_grad_() for x in (x_RD, weight_VD)]
    scores = score_targets(*inputs, targets_R, temperature)
    upstream_R = normal(60, seed=6)
    got = torch.autograd.grad(scores.logprobs, inputs, upstream_R)
    expected = gradients_in_float64(*inputs, targets_R, temperature, upstream_R)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < BF16_STEP / 2


class Products(TorchDispatchMode):
    """Operations in matrix products, by the dtype of their operands and the shape of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[tuple[torch.dtype, tuple[int, ...]], int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        name = function.name()
        if "mm" in name.rpartition("::")[2] or "add_product" in name or "matmul" in name:
            a, b = [x for x in args if isinstance(x, Tensor) and x.ndim >= 2][-2:]
            result = out if isinstance(out, Tensor) else args[0]
            rows = a.numel() // a.shape[-1]
            key = (a.dtype, tuple(result.shape))
            self.flops[key] = self.flops.get(key, 0) + 2 * rows * a.shape[-1] * b.shape[-1]
        return out


def products_of_an_update(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> Products:
    """Forward and backward pass of a microbatch, as on CUDA, without data."""
    monkeypatch.setitem(ROWS_PER_CHUNK, "cpu", ROWS_PER_CHUNK["cuda"])
    monkeypatch.setattr(norm, "ELEMENTS_PER_BLOCK", 1 << 60)  # a GPU does a norm at once
    with FakeTensorMode(allow_non_fake_inputs=True), Products() as products:
        policy = fake_policy(num_layers=2)
        spec = policy.spec
        trace = RoutingTrace.empty(num_tokens, spec.num_moe_layers, spec.top_k)
        context = ForwardContext(
            attention=PackedAttention((num_tokens // 2,) * 2, "cpu"), routing=trace
        )
        rows = torch.arange(num_tokens)
        scores = policy(rows, rows, context, rows, rows, 0.9)
        scores.logprobs.sum().backward()
    return products


@pytest.mark.usefixtures("on_cuda")
def test_a_bfloat16_update_makes_no_float32_product_above_a_gigaflop(monkeypatch):
    flops = products_of_an_update(monkeypatch, num_tokens=4096).flops
    wide = {key: n for key, n in flops.items() if key[0] != torch.bfloat16 and n > 1e9}
    assert not wide
    # The vocabulary's and the routers' are among those counted: five and four times over.
    head = 2 * 4096 * 2048 * SPECS["30b-a3b"].vocab_size
    assert sum(n for (dtype, _), n in flops.items() if dtype == torch.bfloat16) > 6 * head


@pytest.mark.usefixtures("on_cuda")
def test_a_decode_step_makes_no_float32_copy_of_the_head():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        policy = fake_policy(num_layers=1)
        context = ForwardContext(attention=PackedAttention((8,), "cpu"), routing=None)
        rows = torch.arange(8)
        with Shapes() as shapes:
            logits_RV = policy(rows, rows, context, rows)
    assert logits_RV.dtype == torch.float32
    assert (torch.float32, tuple(policy.lm_head.weight.shape)) not in shapes.seen


class Shapes(TorchDispatchMode):
    """Dtype and shape of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.seen.add((out.dtype, tuple(out.shape)))
        return out
