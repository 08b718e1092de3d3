"""Products of bfloat16 matrices with float32 results, and their gradients.

The product of two bfloat16 numbers is exact in float32, and sums are float32: against float32
operands nothing changes but the order of summation. Tensor cores take bfloat16 fifteen times as
fast (H100's data sheet: 989 against 67 TFLOP/s), and no float32 copy of a weight is made.

A gradient of such a result is float32, and rounding it to bfloat16 would cost: slopes of a softmax
sum to zero over its classes, so whatever the rows of a weight have in common cancels out, and the
rounding errors of the slopes, multiplied by it, would not. It is therefore split into two bfloat16
numbers, which together hold 16 of its 24 bits: an error of 2^-17 for twice the operations.

Where a device has no such product (the CPU), operands are widened and all is float32.

Shape legend: R rows, D contracted width, V output width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE_DEVICES = {"cuda"}
"""Device types that multiply bfloat16 matrices into float32 ones."""


def wide_linear(x_RD: Tensor, weight_VD: Tensor) -> Tensor:
    """x W^T in float32, [R, V]; carries gradients."""
    if takes_bfloat16(x_RD, weight_VD):
        return _WideLinear.apply(x_RD, weight_VD)
    return F.linear(x_RD.float(), weight_VD.float())


def takes_bfloat16(*operands: Tensor) -> bool:
    """Whether all are bfloat16, on a device that multiplies them into float32."""
    return all(x.device.type in WIDE_DEVICES and x.dtype == torch.bfloat16 for x in operands)


def multiply(x_RD: Tensor, weight_VD: Tensor) -> Tensor:
    """x W^T in float32, [R, V], of operands that are float32 or that `takes_bfloat16` accepts."""
    if takes_bfloat16(x_RD, weight_VD):
        return torch.mm(x_RD, weight_VD.T, out_dtype=torch.float32)
    return x_RD @ weight_VD.T


def add_gradients(
    grad_RV: Tensor, x_RD: Tensor, weight_VD: Tensor, grad_x_RD: Tensor, grad_weight_VD: Tensor
) -> None:
    """Of `multiply`: write that of x, and add that of W to what is there. All but the operands are
    float32; `grad_RV` is overwritten."""
    if not takes_bfloat16(x_RD, weight_VD):
        torch.mm(grad_RV, weight_VD, out=grad_x_RD)
        grad_weight_VD.addmm_(grad_RV.T, x_RD)
        return
    halves_2RV = grad_RV.new_empty((2, *grad_RV.shape), dtype=torch.bfloat16)
    halves_2RV[0].copy_(grad_RV)
    halves_2RV[1].copy_(grad_RV.sub_(halves_2RV[0]))
    stacked = halves_2RV.flatten(0, 1)
    high_RD, low_RD = torch.mm(stacked, weight_VD, out_dtype=torch.float32).chunk(2)
    torch.add(high_RD, low_RD, out=grad_x_RD)
    _add_product(grad_weight_VD, stacked.T, torch.cat((x_RD, x_RD)))


# An operator of its own, because torch cannot trace the one inside on tensors without data.
@torch.library.custom_op("compass::add_product", mutates_args={"sums"})
def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a b, of bfloat16 factors into float32."""
    torch.addmm(sums, a, b, out_dtype=torch.float32, out=sums)


@_add_product.register_fake
def _(sums: Tensor, a: Tensor, b: Tensor) -> None:
    return None


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(x_RD, weight_VD)
        return multiply(x_RD, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RV: Tensor) -> tuple[Tensor, Tensor]:
        x_RD, weight_VD = ctx.saved_tensors
        grad_x_RD = torch.empty_like(x_RD, dtype=torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        add_gradients(grad_RV.clone(), x_RD, weight_VD, grad_x_RD, grad_weight_VD)
        return grad_x_RD.to(x_RD.dtype), grad_weight_VD.to(weight_VD.dtype)
