"""Attention: one module for training and generation, and the packed backend of training.

Shape legend: B sequences, S longest sequence of a bucket, T packed tokens, N query heads,
G key/value heads, H head width, L = T when batch is 1 (torchtitan's BLNH layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.models.context import ForwardContext
from compass.models.titan import BaseQKVLinear, Linear, Module

MAX_PADDING = 1.25
"""A bucket of sequences is padded to at most this multiple of its tokens."""


class PolicyQKV(BaseQKVLinear):
    """Separate q, k, v projections whose head counts are given, not inferred: an expert-parallel
    rank without work still runs every layer, on zero tokens, where a `-1` has no answer."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseQKVLinear.Config):
        wq: Linear.Config
        wkv: Linear.Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.wq = config.wq.build()
        self.wk = config.wkv.build()
        self.wv = config.wkv.build()

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, D] -> q [B, L, N, H], k and v [B, L, G, H]."""
        q, k, v = (
            project(x_BLD).unflatten(-1, (project.out_features // self.head_dim, self.head_dim))
            for project in (self.wq, self.wk, self.wv)
        )
        return q, k, v


class PolicyAttention(Module):
    """torchtitan's `inner_attention` seam: hands q, k, v to the context's backend."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        layer: int

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = config.layer

    def forward(
        self,
        q_BLNH: Tensor,
        k_BLNH: Tensor,
        v_BLNH: Tensor,
        *,
        attention_masks: ForwardContext,
        scale: float,
        enable_gqa: bool,
    ) -> Tensor:
        """Attend within sequences; batch is 1 and L counts packed tokens."""
        out_TNH = attention_masks.attention.attend(
            self.layer, q_BLNH[0], k_BLNH[0], v_BLNH[0], scale
        )
        return out_TNH.unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Sequences of like length, padded to a rectangle."""

    gather_BS: Tensor
    """Packed position of each cell; padding repeats the sequence's last token."""
    scatter_t: Tensor
    """Flat cells that hold real tokens, in packed order of `tokens_t`."""
    tokens_t: Tensor
    """Packed positions of those cells."""


class PackedAttention:
    """Causal attention over sequences packed end to end (`AttentionBackend`).

    CUDA uses `varlen_attn`. Elsewhere sequences are sorted into buckets of like length and each
    bucket is one rectangular causal SDPA: padding sits at the end of a row, so causality hides it
    and no mask is needed.
    """

    def __init__(self, sequence_lengths: tuple[int, ...], device: torch.device | str) -> None:
        self.sequence_lengths = sequence_lengths
        self.device = torch.device(device)
        starts = [0, *accumulate(sequence_lengths)]
        self._cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=self.device)
        self._buckets = (
            () if self.device.type == "cuda" else _make_buckets(sequence_lengths, starts)
        )

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """[T, N, H]; see `AttentionBackend`."""
        if self.device.type == "cuda":
            return self._attend_varlen(q_TNH, k_TGH, v_TGH, scale)
        out_TNH = torch.zeros_like(q_TNH)
        for bucket in self._buckets:
            # At least float32, like the paged side: then the two differ by summation order alone.
            precise = torch.promote_types(q_TNH.dtype, torch.float32)
            q, k, v = (
                x[bucket.gather_BS].transpose(1, 2).to(precise) for x in (q_TNH, k_TGH, v_TGH)
            )
            out_BNSH = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )
            out_cells = out_BNSH.to(q_TNH.dtype).transpose(1, 2).flatten(0, 1)[bucket.scatter_t]
            if len(self._buckets) == 1 and len(bucket.tokens_t) == len(q_TNH):
                return out_cells
            out_TNH = out_TNH.index_copy(0, bucket.tokens_t, out_cells)
        return out_TNH

    def _attend_varlen(self, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        repeats = q_TNH.shape[1] // k_TGH.shape[1]
        k_TNH, v_TNH = (x.repeat_interleave(repeats, dim=1) for x in (k_TGH, v_TGH))
        longest = max(self.sequence_lengths, default=0)
        out_TNH = varlen_attn(
            q_TNH.to(torch.bfloat16),  # its kernels take no float32
            k_TNH.to(torch.bfloat16),
            v_TNH.to(torch.bfloat16),
            self._cu_seqlens,
            self._cu_seqlens,
            longest,
            longest,
            scale=scale,
            window_size=(-1, 0),
        )
        assert isinstance(out_TNH, Tensor)
        return out_TNH.to(q_TNH.dtype)


def _make_buckets(lengths: tuple[int, ...], starts: list[int]) -> tuple[_Bucket, ...]:
    """Longest first, so that a bucket's rectangle is set by its first sequence.

    A single bucket keeps the packed order, and its result needs no scatter.
    """
    if not lengths:
        return ()
    if max(lengths) * len(lengths) <= MAX_PADDING * sum(lengths):
        return (_make_bucket(list(range(len(lengths))), lengths, starts),)
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    buckets, members, tokens = [], [order[0]], lengths[order[0]]
    for b in order[1:]:
        cells = lengths[members[0]] * (len(members) + 1)
        if cells > MAX_PADDING * (tokens + lengths[b]):
            buckets.append(_make_bucket(members, lengths, starts))
            members, tokens = [], 0
        members.append(b)
        tokens += lengths[b]
    buckets.append(_make_bucket(members, lengths, starts))
    return tuple(buckets)


def _make_bucket(members: list[int], lengths: tuple[int, ...], starts: list[int]) -> _Bucket:
    length_B = torch.tensor([lengths[b] for b in members])
    start_B = torch.tensor([starts[b] for b in members])
    offset_S = torch.arange(int(length_B.max()))
    gather_BS = start_B[:, None] + torch.minimum(offset_S[None, :], length_B[:, None] - 1)
    real_BS = offset_S[None, :] < length_B[:, None]
    return _Bucket(
        gather_BS=gather_BS,
        scatter_t=real_BS.flatten().nonzero().squeeze(1),
        tokens_t=gather_BS[real_BS],
    )
