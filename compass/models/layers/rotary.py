"""Rotary position embeddings (arXiv 2104.09864), rotate-half convention, in few passes.

Composed of single operations, the rotation and above all its gradient go over queries and keys
about fifteen times, which on CPU costs as much as projecting them. The gradient of a rotation is
the rotation back, so both directions are the same three passes here, and one kernel on CUDA.

Shape legend: T packed tokens (batch 1), N heads, H head width, h = H / 2, C = 2 H: cosines, then
sines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compass.models import kernels
from compass.models.titan import CosSinRoPE


class PolicyRotary(CosSinRoPE):
    """torchtitan's table of cosines and sines, applied by `rotate`."""

    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def forward(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate [1, T, N, H] queries and keys by their positions [1, T]."""
        if query.device.type in kernels.DEVICES:
            from compass.models.kernels.rotate import rotate_by_table

            query_TNH, key_TNH = (
                rotate_by_table(x[0], self.cache, positions[0]) for x in (query, key)
            )
            return query_TNH.unsqueeze(0), key_TNH.unsqueeze(0)
        table_TC = self.cache.index_select(0, positions[0])
        cos_T1H, sin_T1H = table_TC.unsqueeze(1).chunk(2, dim=-1)
        return _Rotation.apply(query, cos_T1H, sin_T1H), _Rotation.apply(key, cos_T1H, sin_T1H)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_T1H: Tensor, sin_T1H: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1H, sin_T1H)
        return rotate(x_TNH, cos_T1H, sin_T1H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, None, None]:
        cos_T1H, sin_T1H = ctx.saved_tensors
        return rotate(grad_TNH, cos_T1H, sin_T1H, back=True), None, None


def rotate(x_TNH: Tensor, cos_T1H: Tensor, sin_T1H: Tensor, *, back: bool = False) -> Tensor:
    """x cos + (-x2, x1) sin, where x1 and x2 are the halves of x; `back` turns the other way.
    In float32, whatever the type of x, which the result has."""
    sign = -1.0 if back else 1.0
    h = x_TNH.shape[-1] // 2
    precise_TNH = x_TNH.float()
    out_TNH = precise_TNH * cos_T1H
    out_TNH[..., :h].addcmul_(precise_TNH[..., h:], sin_T1H[..., :h], value=-sign)
    out_TNH[..., h:].addcmul_(precise_TNH[..., :h], sin_T1H[..., h:], value=sign)
    return out_TNH.to(x_TNH.dtype)
