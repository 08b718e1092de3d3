"""Packed attention against one softmax per sequence and token.

Shape legend: T packed tokens, N query heads, G key/value heads, H head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from compass.models.layers.attention import MAX_PADDING, PackedAttention, bucket_members
from tests.cuda_on_cpu import calls, cuda_on_cpu

N, G, H = 4, 2, 3
SCALE = 0.7


def attention_by_loop(q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, lengths: list[int]) -> Tensor:
    """softmax(scale q k) v over the tokens of the same sequence up to the query's own."""
    out_TNH = []
    start = 0
    for length in lengths:
        for t in range(start, start + length):
            heads = []
            for head in range(N):
                group = head // (N // G)
                k_SH, v_SH = k_TGH[start : t + 1, group], v_TGH[start : t + 1, group]
                heads.append((SCALE * (k_SH @ q_TNH[t, head])).softmax(0) @ v_SH)
            out_TNH.append(torch.stack(heads))
        start += length
    return torch.stack(out_TNH)


def random_qkv(num_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    q_TNH, k_TGH, v_TGH = (
        torch.randn(num_tokens, heads, H, generator=noise, dtype=torch.float64).requires_grad_()
        for heads in (N, G, G)
    )
    return q_TNH, k_TGH, v_TGH


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_packed_attention_and_its_gradient_equal_full_attention_per_sequence(lengths):
    qkv = random_qkv(sum(lengths))
    packed = PackedAttention(tuple(lengths), "cpu").attend(0, *qkv, SCALE)
    expected = attention_by_loop(*qkv, lengths)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-12)
    upstream = random_qkv(sum(lengths), seed=1)[0].detach()
    for got, want in zip(
        torch.autograd.grad(packed, qkv, upstream),
        torch.autograd.grad(expected, qkv, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_sequence_sees_nothing_of_its_neighbours():
    """Not even in the last bit, and whether or not lengths are alike enough for one bucket."""
    for lengths in ((5, 5, 5), (6, 5, 5), (1, 11, 4, 2)):
        start, end = lengths[0], lengths[0] + lengths[1]
        q, k, v = (x.detach() for x in random_qkv(sum(lengths)))
        before = PackedAttention(lengths, "cpu").attend(0, q, k, v, SCALE)
        for x in (q, k, v):
            x[:start] += 1e3
            x[end:] -= 1e3
        after = PackedAttention(lengths, "cpu").attend(0, q, k, v, SCALE)
        assert torch.equal(before[start:end], after[start:end])
        assert not torch.equal(before, after)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_buckets_hold_every_sequence_once_and_little_padding(lengths):
    buckets = bucket_members(tuple(lengths))
    assert sorted(b for members in buckets for b in members) == list(range(len(lengths)))
    cells = [max(lengths[b] for b in members) * len(members) for members in buckets]
    tokens = [sum(lengths[b] for b in members) for members in buckets]
    assert all(c <= MAX_PADDING * t for c, t in zip(cells, tokens, strict=True))


def test_buckets_are_fewer_than_sequences_of_like_length():
    assert sorted(map(len, bucket_members((10, 9, 100, 8, 98, 95, 10)))) == [3, 4]


def test_no_tokens_at_all_give_no_output():
    q, k, v = (x[:0] for x in random_qkv(1))
    assert PackedAttention((), "cpu").attend(0, q, k, v, SCALE).shape == (0, N, H)


# ---- as on CUDA


@pytest.fixture
def on_cuda() -> Iterator[None]:
    with cuda_on_cpu():
        yield


def in_torch_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """`varlen_attn` before query heads could share a key head."""
    assert q.shape[1] == k.shape[1]
    return ATTEND(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)


ATTEND = varlen.varlen_attn
LENGTHS = (5, 1, 12)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("attend", [ATTEND, in_torch_2_11])
def test_flash_attention_and_its_gradient_equal_the_loop_but_for_rounding(attend, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", attend)
    exact = random_qkv(sum(LENGTHS))
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    packed = PackedAttention(LENGTHS, "cpu").attend(0, *rounded, SCALE)
    expected = attention_by_loop(*exact, list(LENGTHS))
    assert packed.dtype == torch.bfloat16
    torch.testing.assert_close(packed.double(), expected, rtol=0, atol=4e-2)
    upstream = random_qkv(sum(LENGTHS), seed=1)[0].detach()
    got = torch.autograd.grad(packed, rounded, upstream.bfloat16())
    for one, other in zip(got, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
    assert len(calls) == 1


@pytest.mark.usefixtures("on_cuda")
def test_query_heads_share_a_key_head_where_torch_lets_them():
    q, k, v = (x.detach().bfloat16() for x in random_qkv(sum(LENGTHS)))
    PackedAttention(LENGTHS, "cpu").attend(0, q, k, v, SCALE)
    shared = "enable_gqa" in inspect.signature(ATTEND).parameters  # since torch 2.12
    assert calls == [(torch.bfloat16, N, G if shared else N, sum(LENGTHS), sum(LENGTHS))]


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_wider_than_16_bits_is_rounded_on_cuda(dtype):
    qkv = [x.detach().to(dtype).requires_grad_() for x in random_qkv(sum(LENGTHS))]
    packed = PackedAttention(LENGTHS, "cpu").attend(0, *qkv, SCALE)
    expected = attention_by_loop(*qkv, list(LENGTHS))
    upstream = random_qkv(sum(LENGTHS), seed=1)[0].detach().to(dtype)
    got = (packed, *torch.autograd.grad(packed, qkv, upstream))
    want = (expected, *torch.autograd.grad(expected, qkv, upstream))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 if dtype.itemsize == 8 else 5e-6)
    assert not calls


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_tokens_at_all_give_no_output_on_cuda_either(dtype):
    q, k, v = (x[:0].detach().to(dtype) for x in random_qkv(1))
    assert PackedAttention((), "cpu").attend(0, q, k, v, SCALE).shape == (0, N, H)
