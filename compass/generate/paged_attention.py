"""Attention over the paged KV cache.

Shape legend: T packed tokens, N query heads, G key/value heads, R = N / G, H head width,
B sequences of a bucket, P blocks of the longest of them, S = P * block_size, C tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.generate.kv_cache import KVCache
from compass.models.attention import PackedAttention

_BUCKET_COST = 48
"""Blocks that may be gathered in vain before one more bucket, with its fixed cost of a few kernel
launches, is cheaper (measured on CPU; see tests of bucket_sizes for the rule)."""


class Span(NamedTuple):
    """Tokens [start, start + num_tokens) of the sequence whose blocks are `block_table`."""

    block_table: list[int]
    start: int
    num_tokens: int


class _Bucket(NamedTuple):
    """Decodes of like length, in consecutive rows."""

    rows: slice
    blocks_BP: Tensor
    """Flattened; short tables are padded with their first block, masked below."""
    mask_BS: Tensor
    """0 for live slots, -inf for the rest, as [B, 1, 1, S]."""


class _Continuation(NamedTuple):
    """A chunk that also sees tokens of earlier steps."""

    rows: slice
    blocks_P: Tensor
    mask_CS: Tensor
    """True where a token of the chunk may look."""


class PagedAttention:
    """Attention of one step's tokens over the cache (`AttentionBackend`).

    Single-token spans gather their blocks, in buckets of like length; spans that begin a sequence
    attend among their own tokens without reading the cache; the others gather and mask. Metadata is
    built once, here, and used by every layer. Scores and sums are float32 whatever the cache holds:
    with the trainer's attention in float32 too, bfloat16 runs agree some ten times closer (measured
    by tools/doctor.py) and routers almost never flip. On CUDA the meaning is the same, with no
    kernel of its own yet.
    """

    def __init__(self, cache: KVCache, spans: list[Span], device: torch.device | str) -> None:
        """`spans` in packed order. For speed: decodes first, by length, then those from 0."""
        self.cache = cache
        self.slots_T = torch.tensor(_slots(spans, cache.block_size), dtype=torch.int64).to(device)
        self._buckets: list[_Bucket] = []
        self._starts: list[tuple[slice, PackedAttention]] = []
        self._continuations: list[_Continuation] = []
        self._device = device
        row = 0
        for kind, run in _runs(spans):
            if kind == "decode":
                self._add_decodes(run, row)
            elif kind == "start":
                lengths = tuple(span.num_tokens for span in run)
                rows = slice(row, row + sum(lengths))
                self._starts.append((rows, PackedAttention(lengths, device)))
            else:
                self._add_continuations(run, row)
            row += sum(span.num_tokens for span in run)

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """Store k and v, then attend: [T, N, H]. T may be 0."""
        k_TGH, v_TGH = self.cache.write(layer, self.slots_T, k_TGH, v_TGH)
        out_TNH = torch.empty_like(q_TNH)
        for bucket in self._buckets:
            out_TNH[bucket.rows] = self._decode(layer, bucket, q_TNH[bucket.rows], scale)
        for rows, packed in self._starts:
            out_TNH[rows] = packed.attend(layer, q_TNH[rows], k_TGH[rows], v_TGH[rows], scale)
        for chunk in self._continuations:
            out_TNH[chunk.rows] = self._continue(layer, chunk, q_TNH[chunk.rows], scale)
        return out_TNH

    def _decode(self, layer: int, bucket: _Bucket, q_BNH: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.read(layer, bucket.blocks_BP)
        B, (G, H) = len(q_BNH), keys.shape[2:]
        k_BGSH, v_BGSH = (x.view(B, -1, G, H).transpose(1, 2).float() for x in (keys, values))
        # The query heads of one key head stand as R rows of a query of length R: no key is
        # repeated in memory.
        out_BGRH = F.scaled_dot_product_attention(
            q_BNH.reshape(B, G, -1, H).float(),
            k_BGSH,
            v_BGSH,
            attn_mask=bucket.mask_BS,
            scale=scale,
        )
        return out_BGRH.reshape(B, -1, H).to(q_BNH.dtype)

    def _continue(self, layer: int, chunk: _Continuation, q_CNH: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.read(layer, chunk.blocks_P)
        k_GSH, v_GSH = (x.flatten(0, 1).transpose(0, 1).float() for x in (keys, values))
        out_NCH = F.scaled_dot_product_attention(
            q_CNH.transpose(0, 1)[None].float(),
            k_GSH[None],
            v_GSH[None],
            attn_mask=chunk.mask_CS,
            scale=scale,
            enable_gqa=True,
        )[0]
        return out_NCH.transpose(0, 1).to(q_CNH.dtype)

    def _add_decodes(self, spans: list[Span], row: int) -> None:
        block_size = self.cache.block_size
        num_blocks = [span.start // block_size + 1 for span in spans]
        first = 0
        for size in bucket_sizes(num_blocks):
            members = spans[first : first + size]
            longest = max(num_blocks[first : first + size])
            tables = [
                (span.block_table + [span.block_table[0]] * longest)[:longest] for span in members
            ]
            last_B = torch.tensor([span.start for span in members])
            hidden_BS = torch.arange(longest * block_size) > last_B[:, None]
            mask_BS = torch.zeros(hidden_BS.shape).masked_fill_(hidden_BS, -torch.inf)
            self._buckets.append(
                _Bucket(
                    rows=slice(row + first, row + first + size),
                    blocks_BP=torch.tensor(tables).flatten().to(self._device),
                    mask_BS=mask_BS[:, None, None, :].to(self._device),
                )
            )
            first += size

    def _add_continuations(self, spans: list[Span], row: int) -> None:
        block_size = self.cache.block_size
        for table, start, num_tokens in spans:
            end = start + num_tokens
            live = table[: -(-end // block_size)]
            position_S = torch.arange(len(live) * block_size)
            mask_CS = position_S <= torch.arange(start, end)[:, None]
            self._continuations.append(
                _Continuation(
                    rows=slice(row, row + num_tokens),
                    blocks_P=torch.tensor(live, device=self._device),
                    mask_CS=mask_CS.to(self._device),
                )
            )
            row += num_tokens


def bucket_sizes(num_blocks: list[int]) -> list[int]:
    """Cut consecutive decodes, given the blocks each must read, into buckets.

    A decode joins the bucket before it unless the blocks then read in vain would cost more than a
    bucket of its own. Returns the buckets' sizes, which sum to the number of decodes.
    """
    sizes: list[int] = []
    longest = wasted = 0
    for blocks in num_blocks:
        new_longest = max(longest, blocks)
        if sizes:
            new_wasted = wasted + (new_longest - longest) * sizes[-1] + new_longest - blocks
            if new_wasted <= _BUCKET_COST:
                sizes[-1] += 1
                longest, wasted = new_longest, new_wasted
                continue
        sizes.append(1)
        longest, wasted = blocks, 0
    return sizes


def _kind(span: Span) -> str:
    if span.num_tokens == 1:
        return "decode"
    return "start" if span.start == 0 else "continuation"


def _runs(spans: list[Span]) -> list[tuple[str, list[Span]]]:
    """Consecutive spans of one kind."""
    runs: list[tuple[str, list[Span]]] = []
    for span in spans:
        kind = _kind(span)
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(span)
    return runs


def _slots(spans: list[Span], block_size: int) -> list[int]:
    return [
        table[position // block_size] * block_size + position % block_size
        for table, start, num_tokens in spans
        for position in range(start, start + num_tokens)
    ]
