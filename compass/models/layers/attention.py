"""Attention: one module for training and generation, and the packed backend of training.

Shape legend: B sequences, S keys (in a bucket, those of its longest sequence), T packed tokens,
N query heads, G key/value heads, H head width, C cells of padded rectangles, L = T when batch is 1
(torchtitan's BLNH layout).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.models.context import ForwardContext
from compass.models.layers.rows import pick_rows
from compass.models.titan import BaseQKVLinear, Linear, Module

KERNEL_DEVICES = {"cuda"}
"""Device types on which FlashAttention attends in 16 bits, and torch's memory-efficient kernel in
float32. Elsewhere there are kernels for neither."""

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

    On CUDA what comes in 16 bits goes through FlashAttention. Anything else is sorted into buckets
    of like length, each of which is one rectangular causal SDPA in at least float32: padding sits
    at the end of a row, so causality hides it and no mask is needed.
    """

    def __init__(self, sequence_lengths: tuple[int, ...], device: torch.device | str) -> None:
        self.sequence_lengths = sequence_lengths
        self.device = torch.device(device)

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """[T, N, H]; see `AttentionBackend`."""
        if not self.sequence_lengths:
            return torch.zeros_like(q_TNH)
        if has_flash(q_TNH):
            starts, longest = self._starts, max(self.sequence_lengths)
            return flash_attention(q_TNH, k_TGH, v_TGH, starts, starts, longest, longest, scale)
        # At least float32, like the paged side: then the two differ by summation order alone.
        precise = torch.promote_types(q_TNH.dtype, torch.float32)
        parts = (self._cells.fill(x_TNH.to(precise)) for x_TNH in (q_TNH, k_TGH, v_TGH))
        out_CNH = [
            causal_sdpa(q, k, v, scale).transpose(1, 2).flatten(0, 1)
            for q, k, v in zip(*parts, strict=True)
        ]
        return self._cells.read(torch.cat(out_CNH)).to(q_TNH.dtype)

    # The first layer decides which of these is needed: only it knows the dtype.

    @cached_property
    def _starts(self) -> Tensor:
        """[B + 1] int32: where each sequence begins, and where the last one ends."""
        starts = [0, *accumulate(self.sequence_lengths)]
        return torch.tensor(starts, dtype=torch.int32).to(self.device)

    @cached_property
    def _cells(self) -> _Cells:
        return _Cells(self.sequence_lengths, self.device)


def has_flash(q_TNH: Tensor) -> bool:
    """Whether `flash_attention` takes such queries."""
    return q_TNH.device.type in KERNEL_DEVICES and q_TNH.dtype in (torch.bfloat16, torch.float16)


def flash_attention(
    q_TNH: Tensor,
    k_SGH: Tensor,
    v_SGH: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float,
) -> Tensor:
    """Causal FlashAttention over packed sequences: [T, N, H] in the dtype of q.

    A sequence may have fewer queries than keys: its last query then sees all of them, and each
    query before it one fewer. Starts are int32, one more than there are sequences.
    """
    from torch.nn.attention import varlen

    k_SGH, v_SGH = (x.to(q_TNH.dtype) for x in (k_SGH, v_SGH))
    options: dict[str, Any] = {"enable_gqa": True}
    if not _shares_heads(varlen.varlen_attn):
        repeats = q_TNH.shape[1] // k_SGH.shape[1]
        k_SGH, v_SGH = (x.repeat_interleave(repeats, dim=1) for x in (k_SGH, v_SGH))
        options = {}
    out_TNH = varlen.varlen_attn(
        q_TNH,
        k_SGH,
        v_SGH,
        q_starts,
        k_starts,
        longest_q,
        longest_k,
        scale=scale,
        window_size=(-1, 0),
        **options,
    )
    assert isinstance(out_TNH, Tensor)
    return out_TNH


@cache
def _shares_heads(varlen_attn: Callable[..., object]) -> bool:
    """Whether query heads can share a key head that is given once: since torch 2.12."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def causal_sdpa(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, scale: float) -> Tensor:
    """[B, N, S, H]: attention of each position over those up to it."""
    share = q_BNSH.device.type not in KERNEL_DEVICES
    if not share:
        # The memory-efficient kernel, the only one for float32, knows no shared heads; what torch
        # would fall back to holds all scores at once.
        repeats = q_BNSH.shape[1] // k_BGSH.shape[1]
        k_BGSH, v_BGSH = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSH, v_BGSH))
    return F.scaled_dot_product_attention(
        q_BNSH, k_BGSH, v_BGSH, is_causal=True, scale=scale, enable_gqa=share
    )


class _Cells:
    """Rectangles of sequences of like length, laid end to end: packed tokens in, and out again.

    Sequences all of one length are a rectangle as they stand, and nothing moves.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
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
        token_C = torch.zeros(end, dtype=torch.int64)
        cell_T = torch.zeros(starts[-1], dtype=torch.int64)
        for cell, token, length in zip(filled_B, first_B, length_B, strict=True):
            token_C[cell : cell + length] = torch.arange(token, token + length)
            cell_T[token : token + length] = torch.arange(cell, cell + length)
        self._token_C = token_C.to(device)
        """Packed token of each cell; of a cell that pads, any."""
        self._cell_T = cell_T.to(device)
        """Cell of each packed token."""

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
