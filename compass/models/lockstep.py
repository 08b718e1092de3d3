"""Experts of ranks that step together with equally many rows: exchanges of a fixed size.

An all-to-all of tokens (`compass.models.layers.dispatch`) first tells the host of each rank how
many rows will come, which in a decode step, a few rows from everybody, means waiting for the
device in every layer. Here all rows go to all ranks. Each makes what its own experts have to say
of them, and sends every row's share back to where the row came from. No number is read by the
host, so that a device can record the whole step.

A row's shares are added in the order of ranks, hence of experts: its sum does not depend on the
batch, and differs from `PolicyDispatcher`'s, taken in the order of choice, by float32's rounding.

Shape legend: W ranks that share the experts, B rows of each, M = W * B, K experts per row,
N = M * K, D model width, E experts, e = E / W experts of this rank, X bytes that travel for a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from compass.models.layers.choices import sort_choices, sum_first_choices

# torch 2.13 renamed it, and warns of the old name on every rank.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass(frozen=True, kw_only=True)
class LockstepWayBack:
    """Built by `LockstepDispatcher.dispatch`."""

    place_N: Tensor
    """The row of each choice."""
    end: Tensor
    """[1]: behind which row those of other ranks' experts stand, which nobody here computes."""
    gates_MK: Tensor


class LockstepDispatcher:
    """All rows to all ranks, and the shares of each back."""

    def __init__(self, group: ProcessGroup, num_experts: int) -> None:
        self.group = group
        self.num_experts = num_experts

    def dispatch(
        self, x_BD: Tensor, gates_BK: Tensor, expert_ids_BK: Tensor
    ) -> tuple[Tensor, Tensor, LockstepWayBack]:
        """Returns rows_ND, those of this rank's experts first and sorted by them, where each of
        these ends, and the way back."""
        size, top_k = self.group.size(), expert_ids_BK.shape[1]
        x_MD, gates_MK, expert_ids_MK = self._gather(x_BD, gates_BK, expert_ids_BK)
        num_mine = self.num_experts // size
        first = self.group.rank() * num_mine
        expert_MK = (expert_ids_MK - first).remainder(self.num_experts)  # mine: 0 to e - 1
        order_N, place_N, ends_E = sort_choices(expert_MK.flatten(), self.num_experts)
        ends_e = ends_E[:num_mine]
        rows_ND = x_MD.index_select(0, order_N.div(top_k, rounding_mode="floor"))
        way_back = LockstepWayBack(place_N=place_N, end=ends_e[-1:], gates_MK=gates_MK)
        return rows_ND, ends_e, way_back

    def combine(self, rows_ND: Tensor, way_back: LockstepWayBack) -> Tensor:
        """[B, D] in the dtype of the rows: each own row's sum over its experts, in float32."""
        shares_MD = sum_first_choices(rows_ND, way_back.place_N, way_back.gates_MK, way_back.end)
        came_MD = torch.empty_like(shares_MD)
        dist.all_to_all_single(came_MD, shares_MD, group=self.group)
        came_WBD = came_MD.unflatten(0, (self.group.size(), -1))
        return came_WBD.sum(dim=0).to(rows_ND.dtype)

    def _gather(
        self, x_BD: Tensor, gates_BK: Tensor, expert_ids_BK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Everybody's rows, gates (float32) and experts (int32), in one collective."""
        parts = [part.view(torch.uint8) for part in (gates_BK, expert_ids_BK.int(), x_BD)]
        mine_BX = torch.cat(parts, dim=1)
        all_MX = mine_BX.new_empty((self.group.size() * len(x_BD), mine_BX.shape[1]))
        _all_gather(all_MX, mine_BX, group=self.group)
        gates_MX, ids_MX, x_MX = all_MX.split([part.shape[1] for part in parts], dim=1)
        return x_MX.view(x_BD.dtype), gates_MX.view(torch.float32), ids_MX.view(torch.int32)
