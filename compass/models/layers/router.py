"""The router, and Router Replay (arXiv 2510.11370; arXiv 2512.07710 section 2.4.4;
docs/router_replay.md).

The same router code and gate weights serve rollout and training. In training the *choice* of
experts can be forced to the recorded one; the gate weights are always recomputed from the live
logits, g_i = score_i / sum over the chosen set, so the router keeps its gradient.

Shape legend: T tokens, D model width, E experts, K experts per token, L MoE layers.
torchtitan's B and L axes (batch 1) are kept at the seam only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compass.models.context import RoutingTrace
from compass.models.layers.products import wide_linear
from compass.models.titan import TokenChoiceTopKRouter


class ReplayRouter(TokenChoiceTopKRouter):
    """Top-K softmax or sigmoid router whose choice can be forced and is always recorded."""

    @dataclass(kw_only=True, slots=True)
    class Config(TokenChoiceTopKRouter.Config):
        moe_layer: int
        """Index among the MoE layers: the column of the routing trace."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.moe_layer = config.moe_layer

    def forward(
        self,
        x_TD: Tensor,
        trace: RoutingTrace | None,
        expert_bias_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose experts and weigh them.

        Args:
            x_TD: activations.
            trace: what to force and where to record; None routes live and records nothing.
            expert_bias_E: added to the scores for choosing only.

        Returns:
            gates_TK float32, expert_ids_TK int64.
        """
        logits_TE = self.logits(x_TD)
        # Softmax keeps the order of its logits, and renormalised over a set it is the softmax of
        # the set's logits: neither needs all experts' scores.
        by_logits = self.score_func == "softmax" and self.route_norm and expert_bias_E is None
        scores_TE = logits_TE if by_logits else self._scores(logits_TE)
        with torch.no_grad():
            choice_TE = scores_TE if expert_bias_E is None else scores_TE + expert_bias_E
            live_TK = choice_TE.topk(self.top_k, dim=-1).indices
            expert_ids_TK = live_TK if trace is None else self._record_and_force(trace, live_TK)
        gates_TK = scores_TE.gather(-1, expert_ids_TK)
        if by_logits:
            gates_TK = gates_TK.softmax(dim=-1)
        elif self.route_norm:
            gates_TK = gates_TK / (gates_TK.sum(dim=-1, keepdim=True) + 1e-20)
        if self.route_scale != 1.0:
            gates_TK = gates_TK * self.route_scale
        return gates_TK, expert_ids_TK

    def logits(self, x_TD: Tensor) -> Tensor:
        """[T, E] float32 on every device; an autocast to float32 does nothing on CPU."""
        return wide_linear(x_TD, self.gate.weight)

    def _scores(self, logits_TE: Tensor) -> Tensor:
        sigmoid = self.score_func == "sigmoid"
        return logits_TE.sigmoid() if sigmoid else logits_TE.softmax(dim=-1)

    def _record_and_force(self, trace: RoutingTrace, live_TK: Tensor) -> Tensor:
        """The layer's experts: those of the trace where it has any."""
        trace.live_TLK[:, self.moe_layer] = live_TK
        if trace.forced_TLK is None:
            return live_TK
        forced_TK = trace.forced_TLK[:, self.moe_layer].long()
        if not trace.forced_TLK.is_signed():
            return forced_TK
        return torch.where(forced_TK >= 0, forced_TK, live_TK)


def check_routes(routes_TLK: Tensor, num_experts: int) -> None:
    """Refuse routes no router could have made. Where they are, with one read by the host.

    A missing row is -1 in all K columns of a (token, layer), in signed types; anything else must
    be K distinct ids in [0, num_experts).

    Raises:
        ValueError: naming the first offending (token, layer) and its ids.
    """
    routes_TLK = _comparable(routes_TLK)
    missing_TL = (routes_TLK == -1).all(dim=-1)
    in_range_TL = ((routes_TLK >= 0) & (routes_TLK < num_experts)).all(dim=-1)
    ordered_TLK = routes_TLK.sort(dim=-1).values
    distinct_TL = (ordered_TLK[..., 1:] != ordered_TLK[..., :-1]).all(dim=-1)
    bad_TL = ~(missing_TL | (in_range_TL & distinct_TL))
    if bad_TL.any():
        token, layer = bad_TL.nonzero()[0].tolist()
        raise ValueError(
            f"routed_experts[{token}, {layer}] = {routes_TLK[token, layer].tolist()}: expected "
            f"{routes_TLK.shape[-1]} distinct ids in [0, {num_experts}), or -1 throughout"
        )


def _comparable(routes_TLK: Tensor) -> Tensor:
    """Signed, since no unsigned id is -1, and in a type that torch computes with."""
    if routes_TLK.is_signed():
        return routes_TLK
    return routes_TLK.to(torch.int16 if routes_TLK.dtype == torch.uint8 else torch.int32)


@dataclass(frozen=True, kw_only=True)
class FlipCounts:
    """How often the live router disagrees with recorded routes. Counts but those per token add
    over microbatches."""

    flips_L: Tensor
    """(token, expert) choices per layer whose recorded expert the live router would not choose."""
    flips_T: Tensor
    """The same choices per token, over all layers; int16."""
    tokens_with_flip: Tensor
    """Tokens with at least one such choice in any layer."""
    replayed_tokens: Tensor
    """Tokens that have a recorded row."""
    missing_tokens: Tensor
    """Tokens without one: they route live."""


def count_flips(recorded_TLK: Tensor, live_TLK: Tensor) -> FlipCounts:
    """Compare sets of experts (their order within K does not matter). All counts are int64."""
    recorded_TLK = _comparable(recorded_TLK)
    present_T = (recorded_TLK >= 0).flatten(1).all(dim=1)
    same_TLKK = recorded_TLK.unsqueeze(-1) == live_TLK.unsqueeze(-2)
    flipped_TLK = ~same_TLKK.any(dim=-1) & present_T[:, None, None]
    return FlipCounts(
        flips_L=flipped_TLK.sum(dim=(0, 2)),
        flips_T=flipped_TLK.flatten(1).sum(dim=1).to(torch.int16),
        tokens_with_flip=flipped_TLK.flatten(1).any(dim=1).sum(),
        replayed_tokens=present_T.sum(),
        missing_tokens=(~present_T).sum(),
    )
