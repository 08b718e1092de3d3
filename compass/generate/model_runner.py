"""From a scheduled step to logits: tensors in, one forward pass, routes and block copies recorded.

Shape legend: T tokens of the step, R rows that are sampled from, V vocabulary, L MoE layers,
K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compass.distributed import Topology
from compass.generate.attention.decode_backends import BACKENDS, DecodeBackend, GatherDecode
from compass.generate.attention.decode_step import DecodeStep
from compass.generate.attention.graphs import CudaRecorder, DecodeGraphs, GraphShape
from compass.generate.attention.kv_cache import KVCache
from compass.generate.attention.paged_attention import PagedAttention, Span
from compass.generate.scheduler import Chunk, Step
from compass.generate.transfer import to_device
from compass.models.context import ForwardContext, RoutingTrace
from compass.models.policy import Policy


class ModelRunner:
    """Runs a model over a KV cache."""

    def __init__(
        self,
        model: Policy,
        cache: KVCache,
        device: torch.device,
        *,
        backend: DecodeBackend = GatherDecode,
        decode_step: DecodeStep | None = None,
    ) -> None:
        """`decode_step` takes the steps in which every chunk is a single token; without one they
        run like any other."""
        self.model = model
        self.cache = cache
        self.device = device
        self.backend = backend
        self.decode_step = decode_step
        self.keeps_cache = device.type == "cpu"
        """Between batches. On a CPU no update waits for its memory, and touching other pages for
        every batch costs 4 % of a short one."""

    def follow_weights(self, topology: Topology) -> None:
        """To be called when the model's weights may have moved. Collective over ranks that share
        experts."""
        if self.decode_step is not None and self.decode_step.graphs is not None:
            self.decode_step.graphs.follow(self.model, topology)

    def free_memory(self) -> None:
        """Unless it is kept, give back the cache, and recorded steps, which hold its addresses."""
        if self.keeps_cache:
            return
        if self.decode_step is not None and self.decode_step.graphs is not None:
            self.decode_step.graphs.drop()
        self.cache.free()

    @torch.inference_mode()  # cheaper by a twentieth than `no_grad` where steps are small, on CPU
    def step(self, step: Step, decode: GraphShape | None) -> Tensor:
        """Feed the chunks of `step`; [R, V] float32 logits, one row for each of its samples.

        A step without chunks still runs the forward pass, on no tokens: under expert parallelism
        other ranks wait for this one in its collectives.

        Args:
            decode: what holds this step and those of all ranks that share experts, when each of
                them feeds single tokens only (`compass.generate.agreement`).
        """
        if self.decode_step is not None and decode is not None:
            logits_BV = self.decode_step.run(step.chunks, decode)
            rows = [chunk for _, chunk in step.samples]
            logits_RV = logits_BV[to_device(rows, torch.int64, self.device)]
        else:
            logits_RV = self._forward(step)
        if step.copies:
            sources, targets = zip(*step.copies, strict=True)
            self.cache.copy_blocks(list(sources), list(targets))
        return logits_RV

    def _forward(self, step: Step) -> Tensor:
        """Any mix of chunks."""
        order = sorted(range(len(step.chunks)), key=lambda i: _kind_and_length(step.chunks[i]))
        spans = [
            Span(sequence.block_table, start, num_tokens)
            for sequence, start, num_tokens in (step.chunks[i] for i in order)
        ]
        attention = PagedAttention(self.cache, spans, self.device, self.backend)
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
            to_device(values, torch.int64, self.device) for values in (token_ids, positions, rows)
        )
        return token_ids_T, positions_T, rows_R


def make_runner(
    model: Policy,
    cache: KVCache,
    topology: Topology,
    *,
    attention: str,
    max_num_seqs: int,
    cuda_graphs: bool,
) -> ModelRunner:
    """A runner whose decodes go through the backend named `attention`. Collective over ranks that
    share experts.

    Kernels take sequences of any length as they come, so their decode steps are prepared and, with
    `cuda_graphs`, recorded; what is gathered on CPU is better sorted by length first.
    """
    backend, device = BACKENDS[attention], topology.device
    if attention == "gather":
        return ModelRunner(model, cache, device, backend=backend)
    graphs = None
    if cuda_graphs:
        max_length = model.spec.max_seq_len
        graphs = DecodeGraphs(CudaRecorder, max_rows=max_num_seqs, max_length=max_length)
    decode_step = DecodeStep(
        model, cache, backend, max_rows=max_num_seqs, device=device, graphs=graphs
    )
    runner = ModelRunner(model, cache, device, backend=backend, decode_step=decode_step)
    runner.follow_weights(topology)
    return runner


def _kind_and_length(chunk: Chunk) -> tuple[int, int]:
    """Decodes by length, then chunks from position 0, then continuations: the order that
    `PagedAttention` serves in the fewest calls."""
    if chunk.num_tokens == 1:
        return 0, chunk.start
    return (1 if chunk.start == 0 else 2), chunk.num_tokens
