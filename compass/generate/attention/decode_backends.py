"""How the query of a decoding sequence meets its pages: four implementations of one meaning.

| name     | what runs                                    | where                          |
|----------|----------------------------------------------|--------------------------------|
| `gather` | pages copied side by side, `sdpa` in float32 | anywhere                       |
| `triton` | our kernel (`paged_decode`), no copies       | CUDA; any page size, E4M3 too  |
| `varlen` | torch's `varlen_attn` with block tables      | CUDA, torch 2.12; 16-bit, 256n |
| `flash`  | `flash_attn_with_kvcache`, extra `flash`     | CUDA; 16-bit, 256n             |

256n: FlashAttention 2, behind the last two, takes pages of a multiple of 256 tokens only. The two
are called without splitting a sequence over the device, because how they split depends on the
batch, and a completion must not (the seed contract): they suit large batches.

Prompts do not come here: see `compass.generate.attention.paged_attention`.

Shape legend: B sequences, N query heads, G key heads, R = N / G, H head width, P blocks of the
widest table, S = P * block_size.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from compass.errors import UserError
from compass.generate.attention.kv_cache import KVCache
from compass.generate.config import AttentionName


@dataclass(frozen=True, kw_only=True)
class DecodeTables:
    """Where the tokens of decoding sequences lie. Built for each step, used by every layer."""

    blocks_BP: Tensor
    """int32. Entries behind a sequence's last block must name some block of the cache; what it
    holds is not used."""
    lengths_B: Tensor
    """int32, tokens that each query sees, its own included: at least 1."""
    max_length: int
    """At least the longest length."""


class DecodeAttention(Protocol):
    """One step's queries over a cache that already holds their own keys and values."""

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        """[B, N, H] in the dtype of q."""
        ...


class DecodeBackend(Protocol):
    """Prepares a step; what depends on tables alone is computed here, once for all layers."""

    def __call__(self, cache: KVCache, tables: DecodeTables) -> DecodeAttention: ...


class GatherDecode:
    """Copies the pages of each table side by side, and hides what lies behind its last token.

    Scores and sums are float32 whatever the cache holds: with the trainer's attention in float32
    too, bfloat16 runs agree some ten times closer (measured by tools/doctor.py) and routers almost
    never flip.
    """

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        self.cache = cache
        self.blocks_P = tables.blocks_BP.flatten()
        num_slots = tables.blocks_BP.shape[1] * cache.block_size
        slot_S = torch.arange(num_slots, device=tables.lengths_B.device)
        hidden_BS = slot_S >= tables.lengths_B[:, None]
        mask_BS = torch.zeros_like(hidden_BS, dtype=torch.float32).masked_fill_(
            hidden_BS, -torch.inf
        )
        self.mask_B11S = mask_BS[:, None, None, :]

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        """See `DecodeAttention`."""
        keys, values = self.cache.read(layer, self.blocks_P)
        B, (G, H) = len(q_BNH), keys.shape[2:]
        k_BGSH, v_BGSH = (x.view(B, -1, G, H).transpose(1, 2).float() for x in (keys, values))
        # The query heads of one key head stand as R rows of a query of length R: no key is
        # repeated in memory.
        out_BGRH = F.scaled_dot_product_attention(
            q_BNH.reshape(B, G, -1, H).float(),
            k_BGSH,
            v_BGSH,
            attn_mask=self.mask_B11S,
            scale=scale,
        )
        return out_BGRH.reshape(B, -1, H).to(q_BNH.dtype)


class TritonDecode:
    """Our kernel."""

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        self.cache = cache
        self.tables = tables

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        """See `DecodeAttention`."""
        from compass.generate.attention.paged_decode import paged_decode

        cache = self.cache
        return paged_decode(
            q_BNH,
            cache.keys[layer],
            cache.values[layer],
            self.tables.blocks_BP,
            self.tables.lengths_B,
            max_length=self.tables.max_length,
            scale=scale,
            key_scales=cache.key_scales[layer] if cache.quantised else None,
            value_scales=cache.value_scales[layer] if cache.quantised else None,
        )


class VarlenDecode:
    """torch's own kernel, as queries of length 1."""

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        self.cache = cache
        self.tables = tables
        lengths_B = tables.lengths_B
        self.cu_queries = torch.arange(
            len(lengths_B) + 1, dtype=torch.int32, device=lengths_B.device
        )
        self.cu_keys = F.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        """See `DecodeAttention`."""
        from torch.nn.attention.varlen import varlen_attn

        # Block tables came with torch 2.12, and the type checker may know an older one.
        attend: Any = varlen_attn
        return attend(
            q_BNH,
            self.cache.keys[layer],
            self.cache.values[layer],
            self.cu_queries,
            self.cu_keys,
            1,
            self.tables.max_length,
            scale=scale,
            enable_gqa=True,
            seqused_k=self.tables.lengths_B,
            block_table=self.tables.blocks_BP,
            num_splits=1,
        )


class FlashDecode:
    """The flash-attn package's kernel."""

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        self.cache = cache
        self.tables = tables

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        """See `DecodeAttention`."""
        from flash_attn import flash_attn_with_kvcache

        out_B1NH = flash_attn_with_kvcache(
            q_BNH.unsqueeze(1),
            self.cache.keys[layer],
            self.cache.values[layer],
            cache_seqlens=self.tables.lengths_B,
            block_table=self.tables.blocks_BP,
            softmax_scale=scale,
            num_splits=1,
        )
        return out_B1NH.squeeze(1)


BACKENDS: Mapping[str, DecodeBackend] = MappingProxyType(
    {"gather": GatherDecode, "triton": TritonDecode, "varlen": VarlenDecode, "flash": FlashDecode}
)


def choose_attention(
    name: AttentionName, *, device: torch.device, kv_dtype: torch.dtype, block_size: int
) -> str:
    """The backend that `name` stands for: `auto` is `gather` on CPU, and on CUDA `triton` where it
    can be imported.

    Raises:
        UserError: it cannot run here; one line with the remedy.
    """
    if name == "auto":
        on_cuda = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        return "triton" if on_cuda else "gather"
    if name == "triton":
        _check_triton(device, kv_dtype)
    elif name in ("varlen", "flash"):
        _check_flash(name, device, kv_dtype, block_size)
    return name


def _check_triton(device: torch.device, kv_dtype: torch.dtype) -> None:
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "generator.attention=triton: the package triton is not installed; install it, or use "
            "generator.attention=gather"
        )
    if device.type == "cuda":
        return
    import triton

    # It multiplies the bit patterns of bfloat16 matrices (triton 3.6).
    if not triton.knobs.runtime.interpret or kv_dtype == torch.bfloat16:
        raise UserError(
            f"generator.attention=triton on {device.type}: kernels need a CUDA device (or, in "
            f"float32, Triton's interpreter); use generator.attention=gather"
        )


def _check_flash(name: str, device: torch.device, kv_dtype: torch.dtype, block_size: int) -> None:
    if device.type != "cuda":
        raise UserError(
            f"generator.attention={name} on {device.type}: it needs a CUDA device; use "
            f"generator.attention=gather"
        )
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "generator.attention=flash: the package flash_attn is not installed; install the "
            "extra `flash`, or use generator.attention=triton"
        )
    if name == "varlen" and not _varlen_has_block_tables():
        raise UserError(
            f"generator.attention=varlen: torch {torch.__version__} has no block tables; install "
            f"torch 2.12 or newer, or use generator.attention=triton"
        )
    if kv_dtype not in (torch.bfloat16, torch.float16):
        raise UserError(
            f"generator.attention={name} takes keys in bfloat16 or float16, not "
            f"{str(kv_dtype).removeprefix('torch.')}; use generator.attention=triton"
        )
    if block_size % 256:
        raise UserError(
            f"generator.attention={name} takes pages of a multiple of 256 tokens, but "
            f"generator.block_size={block_size}; set it to 256, or use generator.attention=triton"
        )


def _varlen_has_block_tables() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "block_table" in inspect.signature(varlen_attn).parameters
