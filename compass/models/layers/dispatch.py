"""Tokens to experts and back: sorted by expert, exchanged under expert parallelism by torchtitan's
all-to-all, and brought together again token by token.

What a token gets is the sum over its experts in the order in which they were chosen: nothing is
added into anything by index, so a sum is the same in any batch and on any device, and both
directions and both gradients read rows from known places. (torchtitan's dispatcher adds into zeros
under a global switch to deterministic algorithms; on CPU a decoding step took 2 to 4 % longer.)

Shape legend: T tokens, K experts per token, N = T * K, D model width, E experts, W ranks that share
them, e = E / W experts of this rank, R rows that reached them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compass.models.layers.choices import sort_choices, sum_choices
from compass.models.layers.rows import pick_rows
from compass.models.titan import AllToAllTokenDispatcher


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How rows went to other ranks, to bring them back."""

    order_R: Tensor
    """Where each row of the experts stood when it came: by rank, not by expert."""
    place_R: Tensor
    """The experts' row of each row that came."""
    sent: list[int]
    """Rows for each rank."""
    received: list[int]
    """Rows from each rank."""


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """Where each row came from. Built by `PolicyDispatcher.dispatch`."""

    order_N: Tensor
    """Which of the N choices each row, sorted by expert, belongs to."""
    place_N: Tensor
    """The row of each choice."""
    gates_TK: Tensor
    exchange: Exchange | None
    """None without expert parallelism."""


class PolicyDispatcher(AllToAllTokenDispatcher):
    """torchtitan's seam and its exchange; sorting and summing are ours."""

    @dataclass(kw_only=True, slots=True)
    class Config(AllToAllTokenDispatcher.Config):
        pass

    def dispatch(
        self, x_TD: Tensor, gates_TK: Tensor, expert_ids_TK: Tensor
    ) -> tuple[Tensor, Tensor, Dispatched]:
        """Returns rows_RD sorted by this rank's experts, where the rows of each end, and the way
        back."""
        order_N, place_N, ends_E = sort_choices(expert_ids_TK.flatten(), self.num_experts)
        token_N = order_N.div(self.top_k, rounding_mode="floor")
        rows_ND = pick_rows(x_TD, token_N, place_N.view(expert_ids_TK.shape))
        exchange = None
        if self.ep_mesh is not None:
            rows_ND, ends_E, exchange = self._send(rows_ND, ends_E)
        way_back = Dispatched(
            order_N=order_N, place_N=place_N, gates_TK=gates_TK, exchange=exchange
        )
        return rows_ND, ends_E, way_back

    def combine(self, rows_RD: Tensor, way_back: Dispatched) -> Tensor:
        """[T, D] in the dtype of the rows: each token's sum over its experts, in float32."""
        if way_back.exchange is not None:
            rows_RD = self._send_back(rows_RD, way_back.exchange)
        return sum_choices(rows_RD, way_back.order_N, way_back.place_N, way_back.gates_TK)

    def _send(self, rows_ND: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor, Exchange]:
        """Rows to the ranks of their experts; there, from order of rank to order of expert."""
        assert self.ep_mesh is not None
        group, size = self.ep_mesh.get_group(), self.ep_mesh.size()
        with torch.no_grad():
            counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
            counts, sent, received = self._sync_token_count_exchange(
                counts_E, self._token_count_exchange(counts_E, group, size), size
            )
            counts_We = counts.view(size, -1)
            expert_We = torch.arange(counts_We.shape[1], device=counts.device).repeat(size)
            came_R = expert_We.repeat_interleave(counts, output_size=sum(received))
            order_R, place_R, ends_e = sort_choices(came_R, counts_We.shape[1])
        came_RD = self._dispatch_token_exchange(rows_ND, group, received, sent)
        exchange = Exchange(order_R=order_R, place_R=place_R, sent=sent, received=received)
        return pick_rows(came_RD, order_R, place_R), ends_e, exchange

    def _send_back(self, rows_RD: Tensor, exchange: Exchange) -> Tensor:
        assert self.ep_mesh is not None
        came_RD = pick_rows(rows_RD, exchange.place_R, exchange.order_R)
        return self._combine_token_exchange(
            came_RD, self.ep_mesh.get_group(), exchange.sent, exchange.received
        )
