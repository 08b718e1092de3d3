"""Each token's weighted sum over its experts' rows, wherever those stand.

In PyTorch it is a gather of T K rows, a float32 product as large again, and a sum; their float32
tensors are the largest that a MoE layer makes. Here rows are read where they are.

Shape legend: T tokens, K experts per token, R rows of the experts, D width.
"""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1024
"""Columns that a program holds at once."""


def combine(
    rows_RD: Tensor, place_TK: Tensor, gates_TK: Tensor, end: Tensor | None = None
) -> Tensor:
    """sum over k of gates[t, k] * rows[place[t, k]], in float32, in the order of k.

    Args:
        rows_RD: every row that is read has one place.
        place_TK: int64.
        gates_TK: float32.
        end: a tensor of one int; rows from there on count as zero, whatever they hold. Then there
            is no gradient.

    Returns:
        [T, D]: in the dtype of the rows, or float32 with `end`, when what comes is a part of a sum.
    """
    if end is not None:
        return _forward(rows_RD, place_TK, gates_TK, end)
    return _Combine.apply(rows_RD, place_TK, gates_TK)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, place_TK: Tensor, gates_TK: Tensor) -> Tensor:
        ctx.save_for_backward(rows_RD, place_TK, gates_TK)
        return _forward(rows_RD, place_TK, gates_TK, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, Tensor]:
        rows_RD, place_TK, gates_TK = ctx.saved_tensors
        grad_rows_RD, grad_gates_TK = torch.empty_like(rows_RD), torch.empty_like(gates_TK)
        T, K = place_TK.shape
        if T:
            _combine_back[(T, K)](
                grad_TD.contiguous(),
                rows_RD,
                place_TK,
                gates_TK,
                grad_rows_RD,
                grad_gates_TK,
                rows_RD.shape[1],
                K=K,
                BLOCK=_BLOCK,
                num_warps=4,
            )
        return grad_rows_RD, None, grad_gates_TK


def _forward(rows_RD: Tensor, place_TK: Tensor, gates_TK: Tensor, end: Tensor | None) -> Tensor:
    T, K = place_TK.shape
    dtype = rows_RD.dtype if end is None else torch.float32
    out_TD = rows_RD.new_empty((T, rows_RD.shape[1]), dtype=dtype)
    if T:
        _combine[(T, triton.cdiv(rows_RD.shape[1], _BLOCK))](
            rows_RD.contiguous(),
            place_TK.contiguous(),
            gates_TK.contiguous(),
            place_TK if end is None else end,
            out_TD,
            rows_RD.shape[1],
            K=K,
            HAS_END=end is not None,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out_TD


@triton.jit
def _combine(
    rows_ptr,
    place_ptr,
    gates_ptr,
    end_ptr,
    out_ptr,
    D,
    K: tl.constexpr,
    HAS_END: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's columns of one block."""
    t = tl.program_id(0).to(tl.int64)
    d_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_B = d_B < D
    sum_B = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(place_ptr + t * K + k)
        gate = tl.load(gates_ptr + t * K + k)
        live_B = mask_B
        if HAS_END:
            row_B = row + tl.zeros((BLOCK,), tl.int64)
            live_B = mask_B & (row_B < tl.load(end_ptr))
        x_B = tl.load(rows_ptr + row * D + d_B, mask=live_B, other=0.0)
        sum_B += gate * x_B.to(tl.float32)
    tl.store(out_ptr + t * D + d_B, sum_B.to(out_ptr.dtype.element_ty), mask=mask_B)


@triton.jit
def _combine_back(
    grad_ptr,
    rows_ptr,
    place_ptr,
    gates_ptr,
    grad_rows_ptr,
    grad_gates_ptr,
    D,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The row of one (token, choice): its gradient, and that of its gate."""
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    row = tl.load(place_ptr + t * K + k)
    gate = tl.load(gates_ptr + t * K + k)
    product_B = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, D, BLOCK):
        d_B = first + tl.arange(0, BLOCK)
        mask_B = d_B < D
        grad_B = tl.load(grad_ptr + t * D + d_B, mask=mask_B, other=0.0).to(tl.float32)
        x_B = tl.load(rows_ptr + row * D + d_B, mask=mask_B, other=0.0).to(tl.float32)
        grad_x_B = (gate * grad_B).to(grad_rows_ptr.dtype.element_ty)
        tl.store(grad_rows_ptr + row * D + d_B, grad_x_B, mask=mask_B)
        product_B += grad_B * x_B
    tl.store(grad_gates_ptr + t * K + k, tl.sum(product_B, 0))
