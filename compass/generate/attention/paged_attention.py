"""Attention over the paged KV cache, for any mix of decodes and chunks of prompts.

Shape legend: T packed tokens, N query heads, G key/value heads, H head width, B sequences of a
bucket, P blocks of the longest of them, S = P * block_size, C tokens of a chunk.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.generate.attention.decode_backends import (
    DecodeAttention,
    DecodeBackend,
    DecodeTables,
    GatherDecode,
)
from compass.generate.attention.kv_cache import KVCache
from compass.generate.transfer import to_device
from compass.models.layers.attention import PackedAttention, flash_attention, has_flash

ROWS_AT_ONCE = 512
"""Tokens of a chunk whose scores over everything before them are held at once: at 32 heads and
12,000 tokens of context, 0.8 GB in float32."""
_BUCKET_COST = 48
"""Blocks that may be gathered in vain before one more bucket, with its fixed cost of a few kernel
launches, is cheaper (measured on CPU; see tests of bucket_sizes for the rule)."""
_BUCKET_BYTES = 1 << 21
"""Keys and values gathered at once on CPU: what is copied should still be in a core's cache when
it is read. Worth 8 % of decoding 128 sequences of `debug-4m`."""


class Span(NamedTuple):
    """Tokens [start, start + num_tokens) of the sequence whose blocks are `block_table`."""

    block_table: list[int]
    start: int
    num_tokens: int


class _Bucket(NamedTuple):
    """Decodes of like length, in consecutive rows."""

    rows: slice
    decode: DecodeAttention


class _Continuation:
    """A chunk that also sees tokens of earlier steps."""

    def __init__(self, span: Span, row: int, block_size: int, device: torch.device) -> None:
        """Its tokens are packed from `row` on."""
        table, start, num_tokens = span
        self.rows = slice(row, row + num_tokens)
        self._positions = range(start, start + num_tokens)
        self._block_size = block_size
        self._device = device
        live = table[: -(-(start + num_tokens) // block_size)]
        self.blocks_P = to_device(live, torch.int32, device)

    def attend(self, q_CNH: Tensor, k_SGH: Tensor, v_SGH: Tensor, scale: float) -> Tensor:
        """[C, N, H], over the keys and values of all its blocks, of which the last may not be full.

        Other than FlashAttention, torch holds a score for each pair it is given: so it is given a
        part of the chunk at a time.
        """
        if has_flash(q_CNH):
            end = self._positions.stop
            k_SGH, v_SGH = k_SGH[:end], v_SGH[:end]
            starts = self._starts
            return flash_attention(q_CNH, k_SGH, v_SGH, *starts, len(q_CNH), end, scale)
        k_1GSH, v_1GSH = (x.transpose(0, 1)[None].float() for x in (k_SGH, v_SGH))
        out_NCH = [
            F.scaled_dot_product_attention(
                q_1NCH, k_1GSH, v_1GSH, attn_mask=mask_CS, scale=scale, enable_gqa=True
            )[0]
            for q_1NCH, mask_CS in zip(
                q_CNH.transpose(0, 1)[None].float().split(ROWS_AT_ONCE, dim=2),
                self._mask.split(ROWS_AT_ONCE),
                strict=True,
            )
        ]
        return torch.cat(out_NCH, dim=1).transpose(0, 1).to(q_CNH.dtype)

    @cached_property
    def _starts(self) -> tuple[Tensor, Tensor]:
        """Of queries and keys, for `flash_attention`."""
        ends = (len(self._positions), self._positions.stop)
        queries, keys = (to_device([0, end], torch.int32, self._device) for end in ends)
        return queries, keys

    @cached_property
    def _mask(self) -> Tensor:
        """[C, S], true where a token may look."""
        positions = self._positions
        position_S = torch.arange(len(self.blocks_P) * self._block_size, device=self._device)
        position_C = torch.arange(positions.start, positions.stop, device=self._device)
        return position_S <= position_C[:, None]


class PagedAttention:
    """Attention of one step's tokens over the cache (`AttentionBackend`).

    Single-token spans go to the decode backend; spans that begin a sequence attend among their own
    tokens without reading the cache; the others gather their pages, on every backend.
    Metadata is built once, here, and used by every layer.
    """

    def __init__(
        self,
        cache: KVCache,
        spans: list[Span],
        device: torch.device,
        backend: DecodeBackend = GatherDecode,
    ) -> None:
        """`spans` in packed order. For speed: decodes first, by length, then those from 0."""
        self.cache = cache
        self.slots_T = to_device(_slots(spans, cache.block_size), torch.int64, device)
        self._buckets: list[_Bucket] = []
        self._starts: list[tuple[slice, PackedAttention]] = []
        self._continuations: list[_Continuation] = []
        self._device = device
        self._backend = backend
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
        if self._buckets and self._buckets[0].rows == slice(0, len(q_TNH)):
            return self._buckets[0].decode.attend(layer, q_TNH, scale)  # all of it, so no copy
        out_TNH = torch.empty_like(q_TNH)
        for bucket in self._buckets:
            out_TNH[bucket.rows] = bucket.decode.attend(layer, q_TNH[bucket.rows], scale)
        for rows, packed in self._starts:
            out_TNH[rows] = packed.attend(layer, q_TNH[rows], k_TGH[rows], v_TGH[rows], scale)
        for chunk in self._continuations:
            k_SGH, v_SGH = (x.flatten(0, 1) for x in self.cache.read(layer, chunk.blocks_P))
            out_TNH[chunk.rows] = chunk.attend(q_TNH[chunk.rows], k_SGH, v_SGH, scale)
        return out_TNH

    def _add_decodes(self, spans: list[Span], row: int) -> None:
        num_blocks = [span.start // self.cache.block_size + 1 for span in spans]
        first = 0
        for size in self._bucket_sizes(num_blocks):
            members = spans[first : first + size]
            longest = max(num_blocks[first : first + size])
            tables = [
                (span.block_table + [span.block_table[0]] * longest)[:longest] for span in members
            ]
            lengths = [span.start + 1 for span in members]
            decode = self._backend(
                self.cache,
                DecodeTables(
                    blocks_BP=to_device(tables, torch.int32, self._device),
                    lengths_B=to_device(lengths, torch.int32, self._device),
                    max_length=max(lengths),
                ),
            )
            self._buckets.append(_Bucket(slice(row + first, row + first + size), decode))
            first += size

    def _bucket_sizes(self, num_blocks: list[int]) -> list[int]:
        """Gathering costs what is copied, padding included; kernels take all lengths at once."""
        if self._backend is not GatherDecode:
            return [len(num_blocks)]
        most = len(num_blocks) * max(num_blocks)
        if self._device.type == "cpu":
            most = _BUCKET_BYTES // (self.cache.keys[0][0].nbytes + self.cache.values[0][0].nbytes)
        return bucket_sizes(num_blocks, most)

    def _add_continuations(self, spans: list[Span], row: int) -> None:
        for span in spans:
            chunk = _Continuation(span, row, self.cache.block_size, self._device)
            self._continuations.append(chunk)
            row += span.num_tokens


def bucket_sizes(num_blocks: list[int], most: int) -> list[int]:
    """Cut consecutive decodes, given the blocks each must read, into buckets.

    A decode joins the bucket before it unless that would then hold more than `most` blocks, padding
    included, or the blocks read in vain would cost more than a bucket of its own. Returns the
    buckets' sizes, which sum to the number of decodes.
    """
    sizes: list[int] = []
    longest = wasted = 0
    for blocks in num_blocks:
        new_longest = max(longest, blocks)
        if sizes and new_longest * (sizes[-1] + 1) <= most:
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
