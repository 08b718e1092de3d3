"""Steps in which every sequence feeds one token, from buffers that never move.

Most steps of a generator are of this kind, and all alike but for their numbers. So their inputs lie
at fixed addresses, nothing in between is read by the host, and a device can replay a whole step as
one CUDA graph (`compass.generate.attention.graphs`). Replaying needs a fixed number of rows, and so
does exchanging them with other ranks' experts (`compass.models.lockstep`): rows without a sequence
feed a token that nobody asked for into a block that nobody owns.

Shape legend: B rows, P blocks of the longest table, V vocabulary, N query heads, G key/value heads,
H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from compass.generate.attention.decode_backends import DecodeBackend, DecodeTables
from compass.generate.attention.graphs import DecodeGraphs, GraphShape
from compass.generate.attention.kv_cache import KVCache
from compass.generate.scheduler import Chunk
from compass.models.context import ForwardContext, RoutingTrace
from compass.models.policy import Policy


class DecodeInputs:
    """The block table, the token and the position of each row, in one matrix on the device.

    They arrive in one copy from pinned memory. The host remembers which sequence's table each row
    holds, and writes only what has been added to it: tables of a long context are long, and few
    of them grow in a step.
    """

    def __init__(self, *, max_rows: int, max_blocks: int, device: torch.device) -> None:
        shape, on_cuda = (max_rows, max_blocks + 2), device.type == "cuda"
        host = torch.zeros(shape, dtype=torch.int32, pin_memory=on_cuda)
        self._host, self._numbers = host, host.numpy()
        self._device = torch.zeros(shape, dtype=torch.int32, device=device)
        self._tables: list[list[int] | None] = [None] * max_rows
        self._num_held = [0] * max_rows
        self._copied = torch.cuda.Event() if on_cuda else None

    def load(self, chunks: Sequence[Chunk], num_rows: int, spare_block: int) -> None:
        """Row i takes chunk i; the rows behind them, up to `num_rows`, take `spare_block`."""
        if self._copied is not None:  # else the last step's copy might read this step's numbers
            self._copied.synchronize()
        for row, chunk in enumerate(chunks):
            self._hold(row, chunk.sequence.block_table)
        numbers, num_chunks = self._numbers, len(chunks)
        numbers[:num_chunks, -2] = [chunk.sequence.token_ids[chunk.start] for chunk in chunks]
        numbers[:num_chunks, -1] = [chunk.start for chunk in chunks]
        for row in range(num_chunks, num_rows):
            self._tables[row] = None
        numbers[num_chunks:num_rows, 0] = spare_block
        numbers[num_chunks:num_rows, -2:] = 0
        self._device[:num_rows].copy_(self._host[:num_rows], non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def tables(self, num_rows: int, num_blocks: int) -> Tensor:
        """[B, P] int32. Entries behind the end of a table are left from another: blocks, but not
        the sequence's."""
        return self._device[:num_rows, :num_blocks]

    def tokens(self, num_rows: int) -> Tensor:
        """[B] int64."""
        return self._device[:num_rows, -2].long()

    def positions(self, num_rows: int) -> Tensor:
        """[B] int64."""
        return self._device[:num_rows, -1].long()

    def _hold(self, row: int, table: list[int]) -> None:
        """A table only grows while its sequence holds blocks, and one that takes blocks again gets
        a new list: the same list means the same blocks so far."""
        if table is not self._tables[row]:
            self._tables[row] = table
            self._num_held[row] = 0
        num_held = self._num_held[row]
        if len(table) > num_held:
            self._numbers[row, num_held : len(table)] = table[num_held:]
            self._num_held[row] = len(table)


class _PagedQueries:
    """One query per row (`AttentionBackend`)."""

    def __init__(
        self, cache: KVCache, slots_B: Tensor, tables: DecodeTables, backend: DecodeBackend
    ) -> None:
        self.cache = cache
        self.slots_B = slots_B
        self.decode = backend(cache, tables)

    def attend(
        self, layer: int, q_BNH: Tensor, k_BGH: Tensor, v_BGH: Tensor, scale: float
    ) -> Tensor:
        """Store k and v, then attend: [B, N, H]."""
        self.cache.write(layer, self.slots_B, k_BGH, v_BGH)
        return self.decode.attend(layer, q_BNH, scale)


class DecodeStep:
    """Runs decode steps of a model over a cache."""

    def __init__(
        self,
        model: Policy,
        cache: KVCache,
        backend: DecodeBackend,
        *,
        max_rows: int,
        device: torch.device,
        graphs: DecodeGraphs | None,
    ) -> None:
        """The last block of `cache` must be one that no sequence is given, unless all shapes that
        are run have as many rows as chunks."""
        self.model = model
        self.cache = cache
        self.backend = backend
        self.graphs = graphs
        self.spare_block = cache.num_blocks - 1
        max_blocks = -(-model.spec.max_seq_len // cache.block_size)
        self.inputs = DecodeInputs(max_rows=max_rows, max_blocks=max_blocks, device=device)

    @torch.no_grad()
    def run(self, chunks: Sequence[Chunk], shape: GraphShape) -> Tensor:
        """Feed one token of each sequence; [B, V] float32 logits, a row for each chunk, valid until
        the next step. `shape` holds them all, and is the same on all ranks that share experts."""
        if self.graphs is not None:
            shape = self.graphs.shape_for(*shape)
        self.inputs.load(chunks, shape.num_rows, self.spare_block)
        forward = partial(self._forward, *shape)
        logits_BV = forward() if self.graphs is None else self.graphs.run(shape, forward)
        return logits_BV[: len(chunks)]

    def _forward(self, num_rows: int, max_length: int) -> Tensor:
        """Everything between the inputs' arrival and the logits: device work only."""
        block_size, spec = self.cache.block_size, self.model.spec
        positions_B = self.inputs.positions(num_rows)
        blocks_BP = self.inputs.tables(num_rows, -(-max_length // block_size))
        block_B = blocks_BP.gather(1, (positions_B // block_size)[:, None])[:, 0].long()
        slots_B = block_B * block_size + positions_B % block_size
        tables = DecodeTables(
            blocks_BP=blocks_BP, lengths_B=(positions_B + 1).int(), max_length=max_length
        )
        attention = _PagedQueries(self.cache, slots_B, tables, self.backend)
        trace = RoutingTrace.empty(
            num_rows, spec.num_moe_layers, spec.top_k, device=positions_B.device, lockstep=True
        )
        logits_BV = self.model(
            self.inputs.tokens(num_rows),
            positions_B,
            ForwardContext(attention=attention, routing=trace),
            torch.arange(num_rows, device=positions_B.device),
        )
        assert isinstance(logits_BV, Tensor)
        self.cache.write_routes(slots_B, trace.live_TLK)
        return logits_BV
