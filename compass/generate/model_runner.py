"""From a scheduled step to logits: tensors in, one forward pass, routes and block copies recorded.

Shape legend: T tokens of the step, R rows that are sampled from, V vocabulary, L MoE layers,
K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compass.generate.kv_cache import KVCache
from compass.generate.paged_attention import PagedAttention, Span
from compass.generate.scheduler import Chunk, Step
from compass.models.context import ForwardContext, RoutingTrace
from compass.models.policy import Policy


class ModelRunner:
    """Runs a model over a KV cache."""

    def __init__(self, model: Policy, cache: KVCache, device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.device = device

    @torch.no_grad()
    def step(self, step: Step) -> Tensor:
        """Feed the chunks of `step`; [R, V] float32 logits, one row for each of its samples.

        A step without chunks still runs the forward pass, on no tokens: under expert parallelism
        other ranks wait for this one in its collectives.
        """
        order = sorted(range(len(step.chunks)), key=lambda i: _kind_and_length(step.chunks[i]))
        spans = [
            Span(sequence.block_table, start, num_tokens)
            for sequence, start, num_tokens in (step.chunks[i] for i in order)
        ]
        attention = PagedAttention(self.cache, spans, self.device)
        spec = self.model.spec
        trace = RoutingTrace.empty(
            len(attention.slots_T), spec.num_moe_layers, spec.top_k, device=self.device
        )
        token_ids_T, positions_T, rows_R = self._inputs(step, order)
        logits_RV = self.model(
            token_ids_T, positions_T, ForwardContext(attention=attention, routing=trace), rows_R
        )
        assert isinstance(logits_RV, Tensor)
        self.cache.write_routes(attention.slots_T, trace.live_TLK)
        if step.copies:
            sources, targets = zip(*step.copies, strict=True)
            self.cache.copy_blocks(list(sources), list(targets))
        return logits_RV

    def _inputs(self, step: Step, order: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, positions, and the row of each sample."""
        token_ids: list[int] = []
        positions: list[int] = []
        last_rows = [0] * len(order)
        for i in order:
            sequence, start, num_tokens = step.chunks[i]
            token_ids += sequence.token_ids[start : start + num_tokens]
            positions += range(start, start + num_tokens)
            last_rows[i] = len(token_ids) - 1
        rows = [last_rows[chunk] for _, chunk in step.samples]
        token_ids_T, positions_T, rows_R = (
            torch.tensor(values, dtype=torch.int64).to(self.device)
            for values in (token_ids, positions, rows)
        )
        return token_ids_T, positions_T, rows_R


def _kind_and_length(chunk: Chunk) -> tuple[int, int]:
    """Decodes by length, then chunks from position 0, then continuations: the order that
    `PagedAttention` serves in the fewest calls."""
    if chunk.num_tokens == 1:
        return 0, chunk.start
    return (1 if chunk.start == 0 else 2), chunk.num_tokens
