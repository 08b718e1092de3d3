"""The MoE layer: router, then experts in the dtype of their weights.

Shape legend: T tokens, D model width, F expert width, E experts, K experts per token,
R routed rows (one per chosen expert of a token) that reached this rank's experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from compass.models.context import RoutingTrace
from compass.models.layers.router import ReplayRouter
from compass.models.lockstep import LockstepDispatcher
from compass.models.titan import GroupedExperts, Module, RoutedExperts


class PolicyExperts(GroupedExperts):
    """SwiGLU experts as three grouped matmuls in the weights' own dtype (torchtitan's cast to
    bfloat16, which costs three digits of parity in float32)."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def forward(self, x_RD: Tensor, ends_E: Tensor) -> Tensor:
        """[R, D] rows sorted by local expert, whose rows end before `ends_E` (int32) -> [R, D].
        What is returned for rows behind the last end is anything."""
        w1_EFD, w2_EDF, w3_EFD = (
            w.to_local() if isinstance(w, DTensor) else w
            for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD)
        )
        x_RD = x_RD.to(w1_EFD.dtype)
        gate_RF = F.grouped_mm(x_RD, w1_EFD.transpose(-2, -1), offs=ends_E)
        up_RF = F.grouped_mm(x_RD, w3_EFD.transpose(-2, -1), offs=ends_E)
        return F.grouped_mm(F.silu(gate_RF) * up_RF, w2_EDF.transpose(-2, -1), offs=ends_E)


class PolicyRoutedExperts(RoutedExperts):
    """Experts, and the way of tokens to them and back."""

    @dataclass(kw_only=True, slots=True)
    class Config(RoutedExperts.Config):
        pass

    def forward(
        self, x_TD: Tensor, gates_TK: Tensor, expert_ids_TK: Tensor, *, lockstep: bool
    ) -> Tensor:
        """[T, D] -> [T, D]. `lockstep`: see `RoutingTrace`."""
        dispatcher, ep_mesh = self.token_dispatcher, self.token_dispatcher.ep_mesh
        if lockstep and ep_mesh is not None:
            dispatcher = LockstepDispatcher(ep_mesh.get_group(), dispatcher.num_experts)
        rows_RD, ends_E, way_back = dispatcher.dispatch(x_TD, gates_TK, expert_ids_TK)
        return dispatcher.combine(self.inner_experts(rows_RD, ends_E), way_back)


class PolicyMoE(Module):
    """Mixture of experts with recordable, replayable routing."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        num_experts: int
        router: ReplayRouter.Config
        routed_experts: PolicyRoutedExperts.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.router = config.router.build()
        self.routed_experts = config.routed_experts.build()

    def forward(self, x_BLD: Tensor, trace: RoutingTrace | None) -> Tensor:
        """[1, T, D] -> [1, T, D]."""
        gates_TK, expert_ids_TK = self.router(x_BLD[0], trace)
        lockstep = trace is not None and trace.lockstep
        return self.routed_experts(x_BLD[0], gates_TK, expert_ids_TK, lockstep=lockstep).unsqueeze(
            0
        )
