"""The MoE layer: router, then experts in the dtype of their weights.

Shape legend: T tokens, D model width, F expert width, E experts, K experts per token,
R routed rows (one per chosen expert of a token) that reached this rank's experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from compass.models.context import RoutingTrace
from compass.models.router import ReplayRouter
from compass.models.titan import GroupedExperts, Module, RoutedExperts


class PolicyExperts(GroupedExperts):
    """SwiGLU experts as three grouped matmuls in the weights' own dtype (torchtitan's cast to
    bfloat16, which costs three digits of parity in float32)."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """[R, D] rows sorted by local expert -> [R, D]."""
        w1_EFD, w2_EDF, w3_EFD = (
            w.to_local() if isinstance(w, DTensor) else w
            for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD)
        )
        ends_E = num_tokens_per_expert_E.cumsum(0, dtype=torch.int32)
        x_RD = x_RD.to(w1_EFD.dtype)
        gate_RF = F.grouped_mm(x_RD, w1_EFD.transpose(-2, -1), offs=ends_E)
        up_RF = F.grouped_mm(x_RD, w3_EFD.transpose(-2, -1), offs=ends_E)
        return F.grouped_mm(F.silu(gate_RF) * up_RF, w2_EDF.transpose(-2, -1), offs=ends_E)


class PolicyMoE(Module):
    """Mixture of experts with recordable, replayable routing."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        num_experts: int
        router: ReplayRouter.Config
        routed_experts: RoutedExperts.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.router = config.router.build()
        self.routed_experts = config.routed_experts.build()

    def forward(self, x_BLD: Tensor, trace: RoutingTrace | None) -> Tensor:
        """[1, T, D] -> [1, T, D]."""
        gates_TK, expert_ids_TK, tokens_per_expert_E = self.router(x_BLD[0], trace)
        return self.routed_experts(
            x_BLD, gates_TK.unsqueeze(0), expert_ids_TK.unsqueeze(0), tokens_per_expert_E
        )
