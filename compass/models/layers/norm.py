"""RMSNorm (arXiv 1910.07467) with a gradient of its own on CPU.

There autograd takes PyTorch's apart into a dozen passes over the activations. This one goes over
blocks of rows that stay in the cache, and keeps nothing but its input. A GPU has a fused kernel.

Shape legend: R rows, r rows of a block, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from compass.models.titan import RMSNorm

ELEMENTS_PER_BLOCK = 1 << 16
"""Of the blocks in backward: 256 KB of float32."""


class PolicyNorm(RMSNorm):
    """torchtitan's RMSNorm; values are PyTorch's to the last bit."""

    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _Norm.apply(x, self.weight, self.eps)
        return super().forward(x)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return F.rms_norm(x, weight_D.shape, weight_D, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # With n = x / rms and h = grad * weight: (h - n mean(h n)) / rms, and the sum of grad * n.
        x, weight_D = ctx.saved_tensors
        D = len(weight_D)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        precise_D = weight_D.float()
        grad_weight_D = torch.zeros_like(precise_D)
        rows = max(1, ELEMENTS_PER_BLOCK // D)
        parts = (tensor.reshape(-1, D).split(rows) for tensor in (x, grad, grad_x))
        for x_rD, grad_rD, grad_x_rD in zip(*parts, strict=True):
            x_rD, grad_rD = x_rD.float(), grad_rD.float()
            scale_r1 = (torch.linalg.vecdot(x_rD, x_rD) / D + ctx.eps).rsqrt_()[:, None]
            n_rD = x_rD * scale_r1
            grad_weight_D += (grad_rD * n_rD).sum(dim=0)
            h_rD = grad_rD * precise_D
            mean_r1 = (torch.linalg.vecdot(h_rD, n_rD) / D)[:, None]
            grad_x_rD.copy_(h_rD.addcmul_(n_rD, mean_r1, value=-1).mul_(scale_r1))
        return grad_x, grad_weight_D.to(weight_D.dtype), None
