"""Rows picked by index, when it is known where each of them went.

Then a gradient is picked up at those places; autograd, which does not know them, would add row
after row into zeros.

Shape legend: T rows, W all other axes, M picked rows, K places of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def move_rows(x_TW: Tensor, index_M: Tensor, place_T: Tensor) -> Tensor:
    """`x_TW[index_M]`, where row t has come to stand at `place_T[t]`. Other places at which it is
    found are padding, which has no gradient."""
    return _Move.apply(x_TW, index_M, place_T)


def spread_rows(x_TW: Tensor, index_M: Tensor, place_TK: Tensor) -> Tensor:
    """`x_TW[index_M]`, M = T K, where row t has come to stand at the K places `place_TK[t]`."""
    return _Spread.apply(x_TW, index_M, place_TK)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TW: Tensor, index_M: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_TW.index_select(0, index_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MW: Tensor) -> tuple[Tensor, None, None]:
        (place_T,) = ctx.saved_tensors
        return grad_MW.index_select(0, place_T), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TW: Tensor, index_M: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TW.index_select(0, index_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MW: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        grad_TKW = grad_MW.index_select(0, place_TK.flatten()).unflatten(0, place_TK.shape)
        return grad_TKW.sum(dim=1), None, None
