"""Rotary embedding in one pass, from the table of cosines and sines itself.

Shape legend: T packed tokens, N heads, H head width, h = H / 2, C = 2 H: cosines, then sines.
"""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate_by_table(x_TNH: Tensor, table_PC: Tensor, positions_T: Tensor) -> Tensor:
    """x cos + (-x2, x1) sin at each token's position; in float32, whatever the type of x, which the
    result has."""
    return _Rotation.apply(x_TNH, table_PC, positions_T)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, table_PC: Tensor, positions_T: Tensor) -> Tensor:
        ctx.save_for_backward(table_PC, positions_T)
        return _turn(x_TNH, table_PC, positions_T, sign=1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, None, None]:
        table_PC, positions_T = ctx.saved_tensors
        return _turn(grad_TNH, table_PC, positions_T, sign=-1.0), None, None


def _turn(x_TNH: Tensor, table_PC: Tensor, positions_T: Tensor, *, sign: float) -> Tensor:
    x_TNH = x_TNH.contiguous()
    out_TNH = torch.empty_like(x_TNH)
    T, N, H = x_TNH.shape
    if T:
        _rotate[(T,)](
            x_TNH,
            table_PC,
            positions_T,
            out_TNH,
            sign,
            N=N,
            N_PAD=triton.next_power_of_2(N),
            HALF=H // 2,
            HALF_PAD=triton.next_power_of_2(H // 2),
            num_warps=4,
        )
    return out_TNH


@triton.jit
def _rotate(
    x_ptr,
    table_ptr,
    positions_ptr,
    out_ptr,
    sign,
    N: tl.constexpr,
    N_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    """All heads of one token. The two halves of a row of the table are alike for cosines, and for
    sines."""
    t = tl.program_id(0).to(tl.int64)
    h_h = tl.arange(0, HALF_PAD)
    mask_h = h_h < HALF
    row = table_ptr + tl.load(positions_ptr + t).to(tl.int64) * (4 * HALF)
    cos_h = tl.load(row + h_h, mask=mask_h, other=0.0)[None, :]
    sin_h = tl.load(row + 2 * HALF + h_h, mask=mask_h, other=0.0)[None, :] * sign
    n_N = tl.arange(0, N_PAD)
    place_Nh = (t * N + n_N[:, None]) * (2 * HALF) + h_h[None, :]
    mask_Nh = (n_N[:, None] < N) & mask_h[None, :]
    x1_Nh = tl.load(x_ptr + place_Nh, mask=mask_Nh, other=0.0).to(tl.float32)
    x2_Nh = tl.load(x_ptr + HALF + place_Nh, mask=mask_Nh, other=0.0).to(tl.float32)
    out_type = out_ptr.dtype.element_ty
    tl.store(out_ptr + place_Nh, (x1_Nh * cos_h - x2_Nh * sin_h).to(out_type), mask=mask_Nh)
    tl.store(out_ptr + HALF + place_Nh, (x2_Nh * cos_h + x1_Nh * sin_h).to(out_type), mask=mask_Nh)
