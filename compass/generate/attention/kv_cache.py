"""The paged KV cache.

A *slot* is one token's place in the cache: block * block_size + offset. Besides keys and values a
slot holds the experts its token was routed to, so that a completion's routes are found the same
way as its keys, and shared prompt blocks share them too.

Keys and values can be held in E4M3, with a float32 scale for each slot and key/value head, set by
the largest element of that head's vector.

Shape legend: T packed tokens, G key/value heads, H head width, P blocks, L MoE layers, K experts
per token.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from compass.generate.fp8.numbers import E4M3, dequantise, quantise
from compass.generate.transfer import to_device
from compass.models.specs import ModelSpec


class KVCache:
    """Keys, values and routes of `num_blocks` blocks, for every layer.

    Memory is zeroed: unused slots are masked by adding -inf to their scores, which would not
    silence a NaN.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """`dtype` is that of keys and values as they are held; `float8_e4m3fn` quantises them."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.quantised = dtype == E4M3
        self.route_dtype = spec.route_dtype
        self._spec = spec
        self._dtype = dtype
        self._device = torch.device(device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.key_scales: list[Tensor] = []
        self.value_scales: list[Tensor] = []
        self._gathered: list[Tensor] = []
        self.allocate()

    def free(self) -> None:
        """Give the memory back, and forget all that it holds."""
        self.keys, self.values, self.key_scales, self.value_scales = [], [], [], []
        self.routes, self._gathered = torch.empty(0), []
        if self._device.type == "cuda":
            # Pieces of one layer's size are of little use to a trainer: back to the device.
            torch.cuda.empty_cache()

    def allocate(self) -> None:
        """Take memory, at addresses of its own, unless it is there."""
        if not self.keys:
            self._allocate()

    def _allocate(self) -> None:
        spec, dtype, device = self._spec, self._dtype, self._device
        shape = (self.num_blocks, self.block_size, spec.num_kv_heads, spec.head_dim)
        self.keys, self.values = (
            [_zeros(shape, dtype, device) for _ in range(spec.num_layers)] for _ in range(2)
        )
        scaled_layers = spec.num_layers if self.quantised else 0
        self.key_scales, self.value_scales = (
            [_zeros(shape[:-1], torch.float32, device) for _ in range(scaled_layers)]
            for _ in range(2)
        )
        # What `read` returns lives here, layer after layer: fresh memory for every gather costs
        # more in page faults than the gather itself.
        self._gathered = [torch.empty((0, *shape[1:]), dtype=dtype, device=device)] * 2
        # torch indexes uint16 hardly anywhere: the bits are kept as int16 and viewed on reading.
        stored = torch.uint8 if self.route_dtype == torch.uint8 else torch.int16
        routes_shape = (self.num_blocks * self.block_size, spec.num_moe_layers, spec.top_k)
        self.routes = _zeros(routes_shape, stored, device)

    @staticmethod
    def bytes_per_block(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
        """What one block costs."""
        heads = spec.num_layers * spec.num_kv_heads
        scale = torch.float32.itemsize if dtype == E4M3 else 0
        routes = spec.num_moe_layers * spec.top_k * spec.route_dtype.itemsize
        return block_size * (2 * heads * (spec.head_dim * dtype.itemsize + scale) + routes)

    def write(
        self, layer: int, slots_T: Tensor, k_TGH: Tensor, v_TGH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of T tokens; returns them as `read` will give them.

        A chunk must attend among its own tokens with these: were it to use what it was given, a
        completion in E4M3 would depend on how its prompt was cut into chunks.
        """
        if not self.quantised:
            _put(self.keys[layer], slots_T, k_TGH)
            _put(self.values[layer], slots_T, v_TGH)
            return k_TGH, v_TGH
        held = (self.keys, self.key_scales, k_TGH), (self.values, self.value_scales, v_TGH)
        back = []
        for numbers, scales, x_TGH in held:
            q_TGH, scale_TG = quantise(x_TGH)
            # E4M3 has no kernels for indexed writes; its bytes do.
            _put(numbers[layer].view(torch.uint8), slots_T, q_TGH.view(torch.uint8))
            _put(scales[layer], slots_T, scale_TG)
            back.append(dequantise(q_TGH, scale_TG))
        return back[0], back[1]

    def read(self, layer: int, blocks_P: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks, each [P, block_size, G, H]; valid until next called.
        Those held in E4M3 come as float32."""
        num_blocks = len(blocks_P)
        if num_blocks > len(self._gathered[0]):
            # A quarter more than asked, since tables grow by a block at a time.
            shape = (num_blocks + num_blocks // 4, *self.keys[0].shape[1:])
            self._gathered = [self.keys[0].new_empty(shape) for _ in range(2)]
        keys, values = (gathered[:num_blocks] for gathered in self._gathered)
        for paged, out in ((self.keys[layer], keys), (self.values[layer], values)):
            torch.index_select(_bytes_if_e4m3(paged), 0, blocks_P, out=_bytes_if_e4m3(out))
        if self.quantised:
            keys = dequantise(keys, self.key_scales[layer].index_select(0, blocks_P))
            values = dequantise(values, self.value_scales[layer].index_select(0, blocks_P))
        return keys, values

    def write_routes(self, slots_T: Tensor, routes_TLK: Tensor) -> None:
        """Store the experts of T tokens."""
        self.routes.index_copy_(0, slots_T, routes_TLK.to(self.routes.dtype))

    def read_routes(self, block_tables: list[list[int]], num_tokens: list[int]) -> list[Tensor]:
        """For each sequence [num_tokens, L, K] unsigned, on the CPU: the experts of its first
        tokens. One copy from the device for all of them."""
        blocks = [block for table in block_tables for block in table]
        paged = self.routes.unflatten(0, (self.num_blocks, self.block_size))
        selected = paged.index_select(0, to_device(blocks, torch.int64, self.routes.device))
        pieces = selected.cpu().view(self.route_dtype).split([len(t) for t in block_tables])
        # Copies, not views: each completion goes its own way.
        return [
            piece.flatten(0, 1)[:count].clone()
            for piece, count in zip(pieces, num_tokens, strict=True)
        ]

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole blocks, keys, values and routes alike."""
        source_B, target_B = (
            to_device(blocks, torch.int64, self.routes.device) for blocks in (sources, targets)
        )
        paged_routes = self.routes.unflatten(0, (self.num_blocks, self.block_size))
        numbers = (_bytes_if_e4m3(x) for x in (*self.keys, *self.values))
        for paged in (*numbers, *self.key_scales, *self.value_scales, paged_routes):
            paged.index_copy_(0, target_B, paged.index_select(0, source_B))


def _put(paged: Tensor, slots_T: Tensor, rows_T: Tensor) -> None:
    paged.flatten(0, 1).index_copy_(0, slots_T, rows_T)


def _bytes_if_e4m3(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == E4M3 else x


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that take no memory on the CPU until they are written: `torch.zeros` would touch the
    whole cache at once, most of which a short run never uses."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
