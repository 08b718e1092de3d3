"""Attention of one query per sequence over paged keys and values: our Triton kernels.

Decoding reads every live key and value once and does little else, so the work is cut to keep all
of the device's memory busy: one program for each (sequence, key head, split), where a *split* is a
fixed run of SPLIT_TOKENS positions. It serves the R query heads of its key head together, so that
no key is read twice. A second kernel adds up the splits of a sequence with the running-maximum
softmax (Flash-Decoding; online softmax: arXiv 1805.02867).

Splits have a fixed length, rather than a fixed number, because then what is added to what depends
on a sequence's own length alone: its attention is the same bit for bit in whatever batch it runs.

Keys and values may be E4M3 bytes with a float32 scale for each token and key head. A scale is one
number for the whole vector that a dot product runs along, so it is applied to the score, and to
the weight, instead of to the vectors. Where the device converts E4M3
itself, it does; elsewhere bytes are decoded with integer arithmetic. Both are exact.

Shape legend: B sequences, N query heads, G key heads, R = N / G, H head width, P blocks of the
longest table, C splits of the longest sequence, S tokens of a tile. Sizes in the kernels that must
be powers of two are rounded up: R_PAD, H_PAD.
"""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_TOKENS = 256
"""Positions that one program reads. Halving it would double the programs of a lone sequence and the
partial sums; at R = 8 those are a sixteenth of what is read."""
_TILE_TOKENS = 64
"""Positions in flight at once within a program."""
_REDUCE_TILE = 16
"""Splits that the second kernel adds at once."""
_MIN_DOT_ROWS = 16
"""Tensor cores take no fewer rows: the R query heads are padded with idle ones."""

LOG2_E = 1.4426950408889634
"""exp(x) = 2 ** (x * LOG2_E), and the hardware's exponential is the one of base 2."""


def paged_decode(
    q_BNH: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks_BP: Tensor,
    lengths_B: Tensor,
    *,
    max_length: int,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Softmax attention of each query over the first `lengths_B` tokens of its table.

    Args:
        q_BNH: bfloat16, float16 or float32; scores and sums are float32.
        keys: [blocks, block_size, G, H], contiguous, in any float type, or E4M3 with scales.
        values: likewise.
        blocks_BP: int32 block tables; entries behind a sequence's last block are never read.
        lengths_B: int32; a sequence of length 0 gets zeros.
        max_length: at least the longest length. Known on the host, so that nothing waits for the
            device; results do not depend on it.
        scale: of the scores, before the softmax.
        key_scales: [blocks, block_size, G] float32, for E4M3 keys.
        value_scales: likewise.

    Returns:
        [B, N, H] in the dtype of q.
    """
    B, N, H = q_BNH.shape
    _, block_size, G, _ = keys.shape
    q_BNH = q_BNH.contiguous()
    out_BNH = torch.empty_like(q_BNH)
    if B == 0:
        return out_BNH
    C = max(1, triton.cdiv(max_length, SPLIT_TOKENS))
    # Unnormalised sums, with the maximum and the total of each; unused when nothing is split.
    partial_BNCH = q_BNH.new_empty((B, N, C, H) if C > 1 else (1,), dtype=torch.float32)
    stats_BNC2 = q_BNH.new_empty((B, N, C, 2) if C > 1 else (1,), dtype=torch.float32)
    scaled = key_scales is not None
    if scaled and not _converts_e4m3(q_BNH.device):
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    sizes = kernel_sizes(N, G, H)
    _attend_to_split[(B, G, C)](
        q_BNH,
        keys,
        values,
        key_scales if scaled else stats_BNC2,
        value_scales if scaled else stats_BNC2,
        blocks_BP,
        lengths_B,
        out_BNH,
        partial_BNCH,
        stats_BNC2,
        scale * LOG2_E,
        blocks_BP.stride(0),
        C,
        BLOCK_SIZE=block_size,
        SCALED=scaled,
        SPLIT_COUNT_IS_ONE=C == 1,
        PRECISION="ieee" if q_BNH.dtype == torch.float32 else "tf32",
        **sizes,
        num_warps=4,
        num_stages=2,
    )
    if C > 1:
        _add_splits[(B, N)](
            partial_BNCH,
            stats_BNC2,
            lengths_B,
            out_BNH,
            C,
            N=N,
            H=H,
            H_PAD=sizes["H_PAD"],
            SPLIT=sizes["SPLIT"],
            TILE=_REDUCE_TILE,
            num_warps=4,
        )
    return out_BNH


@cache
def _converts_e4m3(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def kernel_sizes(N: int, G: int, H: int) -> dict[str, int]:
    """The compile-time sizes of `_attend_to_split` for heads of these counts and width."""
    R = N // G
    return {
        "G": G,
        "R": R,
        "R_PAD": max(_MIN_DOT_ROWS, triton.next_power_of_2(R)),
        "H": H,
        "H_PAD": max(16, triton.next_power_of_2(H)),
        "SPLIT": SPLIT_TOKENS,
        "TILE": _TILE_TOKENS,
    }


@triton.jit
def _load(
    vectors,
    scales,
    slot_S,
    live_S,
    g,
    G: tl.constexpr,
    H: tl.constexpr,
    H_PAD: tl.constexpr,
    SCALED: tl.constexpr,
):
    """What the live slots hold for key head g: [S, H_PAD] vectors, and [S] scales."""
    h_H = tl.arange(0, H_PAD)
    x_SH = tl.load(
        vectors + (slot_S[:, None] * G + g) * H + h_H[None, :],
        mask=live_S[:, None] & (h_H[None, :] < H),
        other=0.0,
    )
    scale_S = tl.full(slot_S.shape, 1.0, tl.float32)
    if SCALED:
        if vectors.dtype.element_ty == tl.uint8:
            # E4M3, s eeee mmm -> float16, s 0eeee mmm0000000: the same number with an exponent 8
            # too small. It holds for subnormal numbers too; the cache has no NaN.
            bits_SH = x_SH.to(tl.int16)
            half_SH = ((bits_SH & 0x80) << 8) | ((bits_SH & 0x7F) << 7)
            x_SH = half_SH.to(tl.float16, bitcast=True) * 256.0
        else:
            x_SH = x_SH.to(tl.float16)
        scale_S = tl.load(scales + slot_S * G + g, mask=live_S, other=0.0)
    return x_SH, scale_S


@triton.jit
def _weigh(score_RS, max_R, total_R):
    """One pass of softmax: weights of a tile, the new maximum and total, and the factor by which
    whatever was summed before must shrink."""
    new_max_R = tl.maximum(max_R, tl.max(score_RS, 1))
    # Without a live token so far, as in a sequence of length 0: -inf - -inf would be NaN.
    origin_R = tl.where(new_max_R == -float("inf"), 0.0, new_max_R)
    shrink_R = tl.exp2(max_R - origin_R)
    weight_RS = tl.exp2(score_RS - origin_R[:, None])
    return weight_RS, new_max_R, total_R * shrink_R + tl.sum(weight_RS, 1), shrink_R


@triton.jit
def _weighted_sum(weight_RS, v_SH, scale_S, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """[R, H] float32. Weights are not rounded to the cache's type: TF32 keeps 11 of their bits, and
    every bit of values that are bfloat16 or float16; float32 gets float32 arithmetic. With E4M3
    values, which float16 holds exactly, so does float16 at twice the rate: the tile's largest scale
    is taken out, and what is left is at most 1."""
    if SCALED and PRECISION == "tf32":
        largest = tl.maximum(tl.max(scale_S, 0), 1e-30)
        weight_RS = weight_RS * (scale_S / largest)[None, :]
        sum_RH = tl.dot(weight_RS.to(tl.float16), v_SH) * largest
    else:
        weight_RS = weight_RS * scale_S[None, :]
        sum_RH = tl.dot(weight_RS, v_SH.to(tl.float32), input_precision=PRECISION)
    return sum_RH


@triton.jit
def _attend_to_split(
    q_ptr,
    key_ptr,
    value_ptr,
    key_scale_ptr,
    value_scale_ptr,
    table_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    scale_log2,
    table_stride,
    C,
    BLOCK_SIZE: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT_COUNT_IS_ONE: tl.constexpr,
    PRECISION: tl.constexpr,
    G: tl.constexpr,
    R: tl.constexpr,
    R_PAD: tl.constexpr,
    H: tl.constexpr,
    H_PAD: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """One split of one sequence, for the R query heads of key head g."""
    b = tl.program_id(0)
    g = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(length_ptr + b)
    begin = split * SPLIT
    # Behind the end of a sequence that is shorter than the longest. The second kernel knows.
    if not SPLIT_COUNT_IS_ONE and begin >= length:
        return
    end = tl.minimum(begin + SPLIT, length)
    table = table_ptr + b.to(tl.int64) * table_stride

    r_R = tl.arange(0, R_PAD)
    h_H = tl.arange(0, H_PAD)
    head_R = (b * G + g).to(tl.int64) * R + r_R
    mask_RH = (r_R[:, None] < R) & (h_H[None, :] < H)
    place_RH = head_R[:, None] * H + h_H[None, :]
    q_RH = tl.load(q_ptr + place_RH, mask=mask_RH, other=0.0)

    max_R = tl.full((R_PAD,), -float("inf"), tl.float32)
    total_R = tl.zeros((R_PAD,), tl.float32)
    sum_RH = tl.zeros((R_PAD, H_PAD), tl.float32)
    # The number of tiles is fixed, so that the compiler can load one ahead; those behind the end of
    # the sequence are masked and read nothing.
    for tile in range(0, SPLIT, TILE):
        position_S = begin + tile + tl.arange(0, TILE)
        live_S = position_S < end
        block_S = tl.load(table + position_S // BLOCK_SIZE, mask=live_S, other=0)
        # A cache of a few gigabytes has more elements than 32 bits count.
        slot_S = block_S.to(tl.int64) * BLOCK_SIZE + position_S % BLOCK_SIZE

        k_SH, scale_S = _load(key_ptr, key_scale_ptr, slot_S, live_S, g, G, H, H_PAD, SCALED)
        score_RS = tl.dot(q_RH, tl.trans(k_SH.to(q_RH.dtype)), input_precision="ieee")
        score_RS = score_RS * (scale_S * scale_log2)[None, :]
        score_RS = tl.where(live_S[None, :], score_RS, -float("inf"))
        weight_RS, max_R, total_R, shrink_R = _weigh(score_RS, max_R, total_R)

        v_SH, scale_S = _load(value_ptr, value_scale_ptr, slot_S, live_S, g, G, H, H_PAD, SCALED)
        added_RH = _weighted_sum(weight_RS, v_SH, scale_S, SCALED, PRECISION)
        sum_RH = sum_RH * shrink_R[:, None] + added_RH

    if SPLIT_COUNT_IS_ONE:
        out_RH = sum_RH / tl.where(total_R > 0, total_R, 1.0)[:, None]
        tl.store(out_ptr + place_RH, out_RH.to(out_ptr.dtype.element_ty), mask=mask_RH)
    else:
        row_R = head_R * C + split
        tl.store(partial_ptr + row_R[:, None] * H + h_H[None, :], sum_RH, mask=mask_RH)
        tl.store(stats_ptr + row_R * 2, max_R, mask=r_R < R)
        tl.store(stats_ptr + row_R * 2 + 1, total_R, mask=r_R < R)


@triton.jit
def _add_splits(
    partial_ptr,
    stats_ptr,
    length_ptr,
    out_ptr,
    C,
    N: tl.constexpr,
    H: tl.constexpr,
    H_PAD: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The splits of one sequence and query head, brought to a common maximum and added up."""
    b = tl.program_id(0)
    head = b.to(tl.int64) * N + tl.program_id(1)
    num_splits = tl.cdiv(tl.load(length_ptr + b), SPLIT)
    h_H = tl.arange(0, H_PAD)
    largest = -float("inf")
    total = 0.0
    sum_H = tl.zeros((H_PAD,), tl.float32)
    first = 0
    while first < num_splits:
        split_C = first + tl.arange(0, TILE)
        live_C = split_C < num_splits
        row_C = head * C + split_C
        max_C = tl.load(stats_ptr + row_C * 2, mask=live_C, other=-float("inf"))
        total_C = tl.load(stats_ptr + row_C * 2 + 1, mask=live_C, other=0.0)
        partial_CH = tl.load(
            partial_ptr + row_C[:, None] * H + h_H[None, :],
            mask=live_C[:, None] & (h_H[None, :] < H),
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(max_C, 0))
        shrink = tl.exp2(largest - new_largest)
        weight_C = tl.exp2(max_C - new_largest)
        total = total * shrink + tl.sum(total_C * weight_C, 0)
        sum_H = sum_H * shrink + tl.sum(partial_CH * weight_C[:, None], 0)
        largest = new_largest
        first += TILE
    out_H = sum_H / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + head * H + h_H, out_H.to(out_ptr.dtype.element_ty), mask=h_H < H)
