"""What every layer of a forward pass is told besides its activations.

Shape legend: T packed tokens, N query heads, G key/value heads, H head width,
L MoE layers, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AttentionBackend(Protocol):
    """How queries meet keys: packed sequences in training, a paged KV cache in generation."""

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """Causal attention of each packed token within its own sequence; [T, N, H]."""
        ...


@dataclass(frozen=True, kw_only=True)
class RoutingTrace:
    """Expert choices of one forward pass: those forced upon the routers, and their own.

    Rows are addressed by (token, layer), never by call order, so a layer that runs again
    (activation checkpointing recomputes it during backward) reads and writes the same cells.
    """

    forced_TLK: Tensor | None
    """Recorded choices to replay, of any integer type; a row of -1 routes live. None: every row
    routes live."""
    live_TLK: Tensor
    """int64, written by the routers: what each would choose by itself."""
    lockstep: bool
    """Every rank of the expert-parallel group feeds as many rows in this pass, and none wants a
    gradient: then they exchange rows in sizes that are known beforehand."""

    @staticmethod
    def empty(
        num_tokens: int,
        num_layers: int,
        top_k: int,
        *,
        device: torch.device | str = "cpu",
        forced_TLK: Tensor | None = None,
        lockstep: bool = False,
    ) -> RoutingTrace:
        """A trace ready for one forward pass of `num_tokens` tokens.

        Raises:
            ValueError: `forced_TLK` has another shape.
        """
        shape = (num_tokens, num_layers, top_k)
        if forced_TLK is not None and tuple(forced_TLK.shape) != shape:
            raise ValueError(
                f"routes to replay have shape {tuple(forced_TLK.shape)}, expected {shape}"
            )
        live_TLK = torch.empty(shape, dtype=torch.int64, device=device)
        return RoutingTrace(forced_TLK=forced_TLK, live_TLK=live_TLK, lockstep=lockstep)


@dataclass(frozen=True, kw_only=True)
class ForwardContext:
    """Travels through torchtitan's `attention_masks` argument to every attention and MoE layer."""

    attention: AttentionBackend
    routing: RoutingTrace | None
    """None for dense models, or when nobody asks which experts were chosen."""
