"""RMSNorm's own gradient against autograd through the formula, and its values against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import compass.models.layers.norm as norm_module
from compass.models.layers.norm import PolicyNorm

D, EPS = 12, 1e-3


def make_norm() -> PolicyNorm:
    norm = PolicyNorm.Config(normalized_shape=D, eps=EPS).build()
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows_per_block", [1, 7, 1000])
@pytest.mark.parametrize("shape", [(1, 21, D), (1, 5, 4, D), (1, 0, D)])
def test_the_gradient_is_that_of_the_formula(shape, rows_per_block, monkeypatch):
    monkeypatch.setattr(norm_module, "ELEMENTS_PER_BLOCK", rows_per_block * D)
    norm = make_norm()
    x, upstream = random(shape).requires_grad_(), random(shape, 1)
    got = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    precise, weight = x.double(), norm.weight.double()
    expected = precise * (precise.square().mean(dim=-1, keepdim=True) + EPS).rsqrt() * weight
    wanted = torch.autograd.grad(expected, (x, norm.weight), upstream.double())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_values_are_pytorchs_with_and_without_a_gradient():
    norm, x = make_norm(), random((1, 9, D))
    expected = F.rms_norm(x, (D,), norm.weight, EPS)
    assert torch.equal(norm(x), expected)
    with torch.no_grad():
        assert torch.equal(norm(x), expected)


def test_bfloat16_gradients_are_the_float32_ones_rounded():
    norm, x = make_norm(), random((1, 9, D)).bfloat16()
    upstream = random((1, 9, D), 1).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        norm = norm.to(torch.bfloat16).to(dtype)
        given = x.to(dtype).requires_grad_()
        results.append(torch.autograd.grad(norm(given), (given, norm.weight), upstream.to(dtype)))
    for low, high in zip(*results, strict=True):
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, high.bfloat16())


def test_a_slice_and_a_transposed_gradient_are_understood():
    """Neither input nor gradient need be contiguous."""
    norm, wide = make_norm(), random((4, 6, 2 * D)).requires_grad_()
    upstream = random((D, 6, 4)).transpose(0, 2)
    (got,) = torch.autograd.grad(norm(wide[..., :D]), wide, upstream)
    (plain,) = torch.autograd.grad(
        F.rms_norm(wide[..., :D], (D,), norm.weight, EPS), wide, upstream
    )
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)
