"""Attention: one module for training and generation, and the packed backend of training.

Shape legend: B sequences, S longest sequence of a bucket, T packed tokens, N query heads,
G key/value heads, H head width, C cells of padded rectangles, L = T when batch is 1 (torchtitan's
BLNH layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.models.context import ForwardContext
from compass.models.rows import pick_rows
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


class PackedAttention:
    """Causal attention over sequences packed end to end (`AttentionBackend`).

    CUDA uses `varlen_attn`. Elsewhere sequences are sorted into buckets of like length and each
    bucket is one rectangular causal SDPA: padding sits at the end of a row, so causality hides it
    and no mask is needed.
    """

    def __init__(self, sequence_lengths: tuple[int, ...], device: torch.device | str) -> None:
        self.sequence_lengths = sequence_lengths
        self.device = torch.device(device)
        if self.device.type == "cuda":
            starts = [0, *accumulate(sequence_lengths)]
            self._cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=self.device)
        else:
            self._cells = _Cells(sequence_lengths)

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """[T, N, H]; see `AttentionBackend`."""
        if self.device.type == "cuda":
            return self._attend_varlen(q_TNH, k_TGH, v_TGH, scale)
        if not self.sequence_lengths:
            return torch.zeros_like(q_TNH)
        # At least float32, like the paged side: then the two differ by summation order alone.
        precise = torch.promote_types(q_TNH.dtype, torch.float32)
        parts = (self._cells.fill(x_TNH.to(precise)) for x_TNH in (q_TNH, k_TGH, v_TGH))
        out_CNH = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            .transpose(1, 2)
            .flatten(0, 1)
            for q, k, v in zip(*parts, strict=True)
        ]
        return self._cells.read(torch.cat(out_CNH)).to(q_TNH.dtype)

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


class _Cells:
    """Rectangles of sequences of like length, laid end to end: packed tokens in, and out again.

    Sequences all of one length are a rectangle as they stand, and nothing moves.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.shapes: list[tuple[int, int]] = []
        """Rows and length of each rectangle."""
        starts = [0, *accumulate(lengths)]
        filled_B, first_B, length_B = [], [], []
        end = 0
        for members in bucket_members(lengths):
            longest = lengths[members[0]]
            self.shapes.append((len(members), longest))
            for row, b in enumerate(members):
                filled_B.append(end + row * longest)
                first_B.append(starts[b])
                length_B.append(lengths[b])
            end += len(members) * longest
        self._moves = len(set(lengths)) > 1
        self._token_C = torch.zeros(end, dtype=torch.int64)
        """Packed token of each cell; of a cell that pads, any."""
        self._cell_T = torch.zeros(starts[-1], dtype=torch.int64)
        """Cell of each packed token."""
        for cell, token, length in zip(filled_B, first_B, length_B, strict=True):
            self._token_C[cell : cell + length] = torch.arange(token, token + length)
            self._cell_T[token : token + length] = torch.arange(cell, cell + length)

    def fill(self, x_TNH: Tensor) -> list[Tensor]:
        """The rectangles of packed rows, each [rows, N, length, H]."""
        x_CNH = pick_rows(x_TNH, self._token_C, self._cell_T) if self._moves else x_TNH
        sizes = [rows * length for rows, length in self.shapes]
        return [
            part.unflatten(0, shape).transpose(1, 2)
            for part, shape in zip(x_CNH.split(sizes), self.shapes, strict=True)
        ]

    def read(self, x_CNH: Tensor) -> Tensor:
        """Packed rows of what `fill` laid out, cells that pad left behind."""
        return x_CNH.index_select(0, self._cell_T) if self._moves else x_CNH


def bucket_members(lengths: tuple[int, ...]) -> list[list[int]]:
    """Sequences of each bucket, longest first, so that its rectangle is set by its first.

    Each is padded to at most `MAX_PADDING` times its tokens.
    """
    buckets: list[list[int]] = []
    tokens = 0
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        tokens += lengths[b]
        if buckets:
            cells = lengths[buckets[-1][0]] * (len(buckets[-1]) + 1)
            if cells <= MAX_PADDING * tokens:
                buckets[-1].append(b)
                continue
        buckets.append([b])
        tokens = lengths[b]
    return buckets
