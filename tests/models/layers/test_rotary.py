"""Rotary embeddings against complex multiplication, and torchtitan's own."""

from __future__ import annotations

import pytest
import torch

from compass.models.layers.rotary import PolicyRotary, rotate
from compass.models.titan import CosSinRoPE

T, H, THETA = 9, 8, 10_000.0


def make_queries_and_keys(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(1, T, heads, H, generator=noise).to(dtype).requires_grad_() for heads in (4, 2)
    )
    return query, key


def positions() -> torch.Tensor:
    """Of packed sequences: they start again."""
    return torch.tensor([[0, 1, 2, 3, 0, 1, 57, 58, 0]])


def test_each_pair_turns_by_its_frequency_times_the_position():
    rope = PolicyRotary.Config(dim=H, max_seq_len=64, theta=THETA).build()
    query, key = make_queries_and_keys()
    frequency_h = THETA ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
    turn_Th = torch.exp(1j * positions()[0][:, None].double() * frequency_h)
    for got, x in zip(rope(query, key, positions()), (query, key), strict=True):
        first, second = x[0].detach().double().chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn_Th[:, None]
        expected = torch.cat([turned.real, turned.imag], dim=-1)
        torch.testing.assert_close(got[0].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchtitans(dtype):
    results = []
    for kind in (PolicyRotary, CosSinRoPE):
        rope = kind.Config(dim=H, max_seq_len=64, theta=THETA).build()
        inputs = make_queries_and_keys(dtype)
        outputs = rope(*inputs, positions())
        upstream = [torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype) for out in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, upstream)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == dtype
        rounding = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def test_turning_back_undoes_a_turn():
    angle_T1h = torch.linspace(-3, 3, T)[:, None, None] * torch.ones(H // 2)
    cos_T1H, sin_T1H = (torch.cat([x, x], dim=-1) for x in (angle_T1h.cos(), angle_T1h.sin()))
    x_TNH = make_queries_and_keys()[0][0].detach()
    turned_TNH = rotate(x_TNH, cos_T1H, sin_T1H)
    assert not torch.allclose(turned_TNH, x_TNH)
    back_TNH = rotate(turned_TNH, cos_T1H, sin_T1H, back=True)
    torch.testing.assert_close(back_TNH, x_TNH, rtol=0, atol=1e-6)
