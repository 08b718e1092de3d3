"""Scores of given next tokens, without ever holding all logits.

Shape legend: R scored rows, r rows of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compass.models.layers.products import add_gradients, multiply, takes_bfloat16
from compass.types import TokenScores

ROWS_PER_CHUNK = {"cpu": 128, "cuda": 1024}
"""Rows whose logits are held at once, by device type. On CPU a chunk of a small vocabulary then
fits the second-level cache, where all that is done to a logit costs a fifth of the matrix product
that makes it (measured; 1024 rows are 15 % slower). A GPU wants larger products."""


def score_targets(
    x_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> TokenScores:
    """Log-probability of each target, and the entropy, under softmax(x W^T / temperature).

    Logits are float32 whatever the compute dtype, and backward computes them again chunk by chunk,
    so that memory grows neither with R x V nor with what autograd would keep of each operation.
    The entropy carries a gradient where `entropy_gradient` says so.
    """
    if not takes_bfloat16(x_RD, weight_VD):
        x_RD = x_RD.float() if temperature == 1.0 else x_RD.float() / temperature
        weight_VD, temperature = weight_VD.float(), 1.0
    logprobs_R, entropy_R = _TargetScores.apply(
        x_RD, weight_VD, targets_R, temperature, entropy_gradient
    )
    return TokenScores(logprobs=logprobs_R, entropy=entropy_R)


class _TargetScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        weight_VD: Tensor,
        targets_R: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs_R, entropy_R, log_z_R = (
            x_RD.new_empty(len(x_RD), dtype=torch.float32) for _ in range(3)
        )
        outputs = (logprobs_R, entropy_R, log_z_R)
        for x_rD, targets_r, logprobs_r, entropy_r, log_z_r in _chunks(x_RD, targets_R, *outputs):
            logits_rV = _logits(x_rD, weight_VD, temperature)
            highest_r = logits_rV.amax(dim=-1)
            logits_rV -= highest_r[:, None]
            weights_rV = logits_rV.exp()
            sum_r = weights_rV.sum(dim=-1)
            log_sum_r = sum_r.log()
            torch.sub(_at(logits_rV, targets_r), log_sum_r, out=logprobs_r)
            mean_logit_r = torch.linalg.vecdot(weights_rV, logits_rV) / sum_r
            torch.sub(log_sum_r, mean_logit_r, out=entropy_r)
            torch.add(highest_r, log_sum_r, out=log_z_r)
        ctx.save_for_backward(x_RD, weight_VD, targets_R, log_z_R, entropy_R)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_R)
        return logprobs_R, entropy_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor, of_entropy_R: Tensor) -> tuple[Tensor | None, ...]:
        # d logprob / d logit = (1 at the target) - probability, and
        # d entropy / d logit = -probability (logprob + entropy).
        x_RD, weight_VD, targets_R, log_z_R, entropy_R = ctx.saved_tensors
        slope_R, rise_R = grad_R / ctx.temperature, of_entropy_R / ctx.temperature
        grad_x_RD = torch.empty_like(x_RD, dtype=torch.float32)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for x_rD, targets_r, log_z_r, entropy_r, slope_r, rise_r, grad_x_rD in _chunks(
            x_RD, targets_R, log_z_R, entropy_R, slope_R, rise_R, grad_x_RD
        ):
            grad_rV = _logits(x_rD, weight_VD, ctx.temperature).sub_(log_z_r[:, None])
            if ctx.entropy_gradient:
                factor_rV = (grad_rV + entropy_r[:, None]).mul_(-rise_r[:, None])
                grad_rV.exp_().mul_(factor_rV.sub_(slope_r[:, None]))
            else:
                grad_rV.exp_().mul_(-slope_r[:, None])
            grad_rV.scatter_add_(1, targets_r[:, None], slope_r[:, None])
            add_gradients(grad_rV, x_rD, weight_VD, grad_x_rD, grad_weight_VD)
        return grad_x_RD.to(x_RD.dtype), grad_weight_VD.to(weight_VD.dtype), None, None, None


def _logits(x_rD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_rV = multiply(x_rD, weight_VD)
    return logits_rV if temperature == 1.0 else logits_rV.div_(temperature)


def _chunks(x_RD: Tensor, *others: Tensor) -> Any:
    rows = ROWS_PER_CHUNK[x_RD.device.type]
    return zip(*(tensor.split(rows) for tensor in (x_RD, *others)), strict=True)


def _at(values_rV: Tensor, targets_r: Tensor) -> Tensor:
    return values_rV.gather(-1, targets_r[:, None]).squeeze(-1)
