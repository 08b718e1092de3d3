"""Rounding rows to E4M3 in one kernel: our Triton form of `compass.generate.fp8.numbers.quantise`.

One program takes a row: its largest magnitude, the scale that this sets, then the quotients as E4M3
bytes. Bits are those of the CPU: division rounds to nearest (torch on CUDA multiplies by a
reciprocal instead), and numbers become bytes by integer arithmetic, which needs no FP8 hardware.

Shape legend: R rows, I elements of a row, of which a tile is in flight at once.
"""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_IN_FLIGHT = 4096
"""Elements that a program holds at once; longer rows are read twice."""
_ELEMENTS_PER_WARP = 512


def quantise_rows(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 [R, I] and float32 scales [R] of rows in any float type."""
    R, I = x_RI.shape  # noqa: E741  # a shape, not a numeral
    x_RI = x_RI.contiguous()
    values_RI = torch.empty((R, I), dtype=torch.uint8, device=x_RI.device)
    scale_R = torch.empty(R, dtype=torch.float32, device=x_RI.device)
    if R:
        tile = tile_elements(I)
        num_warps = min(8, max(1, tile // _ELEMENTS_PER_WARP))
        _round_row[(R,)](x_RI, values_RI, scale_R, I=I, TILE=tile, num_warps=num_warps)
    return values_RI.view(torch.float8_e4m3fn), scale_R


def tile_elements(row_elements: int) -> int:
    """Elements of a row that a program holds at once: a power of two."""
    return min(_MOST_IN_FLIGHT, max(16, triton.next_power_of_2(row_elements)))


@triton.jit
def _magnitude(bits):
    """As integers, magnitudes are ordered as their floats are, with infinity and then NaN on top:
    the largest of a row that holds a NaN is one."""
    return bits & 0x7FFFFFFF


@triton.jit
def _to_e4m3(x):
    """Bytes of float32 numbers of at most 448, rounded to nearest, halves to even; NaN stays."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = _magnitude(bits)
    # The exponent loses 120 of its bias of 127, the mantissa the last 20 of its 23 bits.
    half_to_even = 0x7FFFF + ((magnitude >> 20) & 1)
    normal = ((magnitude + half_to_even) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9, which is the last place of a float32 of 2^14: adding that rounds.
    tiny = tl.abs(x) + 16384.0
    subnormal = tiny.to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _round_row(x_ptr, value_ptr, scale_ptr, I: tl.constexpr, TILE: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    i_T = tl.arange(0, TILE)
    largest_T = tl.zeros((TILE,), tl.int32)
    for first in range(0, I, TILE):
        x_T = tl.load(x_ptr + row * I + first + i_T, mask=first + i_T < I, other=0.0)
        bits_T = x_T.to(tl.float32).to(tl.int32, bitcast=True)
        largest_T = tl.maximum(largest_T, _magnitude(bits_T))
    largest = tl.max(largest_T, 0).to(tl.float32, bitcast=True)
    scale = tl.div_rn(largest, 448.0)
    # Below 448 times the smallest normal float32, digits would be lost. NaN passes comparisons by.
    scale = tl.where(scale < 1.1754943508222875e-38, 1.1754943508222875e-38, scale)
    scale = tl.where(largest == 0.0, 1.0, scale)
    tl.store(scale_ptr + row, scale)
    for first in range(0, I, TILE):
        live_T = first + i_T < I
        x_T = tl.load(x_ptr + row * I + first + i_T, mask=live_T, other=0.0)
        x_T = tl.div_rn(x_T.to(tl.float32), scale)
        # The quotient of the largest element can round to just above 448.
        x_T = tl.where(x_T > 448.0, 448.0, tl.where(x_T < -448.0, -448.0, x_T))
        tl.store(value_ptr + row * I + first + i_T, _to_e4m3(x_T), mask=live_T)
