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


def pick_rows(x_TW: Tensor, index_M: Tensor, place: Tensor) -> Tensor:
    """`x_TW[index_M]`, where row t has come to stand at `place[t]`: [T], or [T, K] for K places.
    Others at which it is found are padding, which has no gradient."""
    return _Pick.apply(x_TW, index_M, place)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TW: Tensor, index_M: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x_TW.index_select(0, index_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MW: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        picked = grad_MW.index_select(0, place.flatten())
        return picked if place.ndim == 1 else picked.unflatten(0, place.shape).sum(1), None, None
