"""Who owns which block of the KV cache: a free list and reference counts, nothing else.

A block holds `block_size` consecutive tokens of one sequence. Full blocks of a prompt are shared
by the samples of its group; a block that will still be written has exactly one owner. A *table* is
the list of block ids of one sequence, in order of position; sequences own their tables and the
manager only counts.
"""

from __future__ import annotations

from typing import NamedTuple


class Copy(NamedTuple):
    """The content of block `source` must be copied to block `target`."""

    source: int
    target: int


class Fork(NamedTuple):
    """A new table, and the copy of the partly filled last block, if there is one."""

    table: list[int]
    copy: Copy | None


class BlockManager:
    """Hands out the blocks of a pool of `num_blocks`."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.ref_counts = [0] * num_blocks
        # A stack, lowest id on top: recently used blocks are reused first, while still in cache.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def extend(self, table: list[int], num_tokens: int) -> bool:
        """Grow `table` in place until it holds `num_tokens`; False, and no change, without room."""
        missing = self.num_blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            table.append(self._take())
        return True

    def share(self, table: list[int], num_tokens: int) -> list[int]:
        """A new table of the blocks of `table` that the first `num_tokens` tokens fill entirely."""
        shared = table[: num_tokens // self.block_size]
        for block in shared:
            self.ref_counts[block] += 1
        return shared

    def fork(self, table: list[int], num_tokens: int) -> Fork | None:
        """A table that holds the same first `num_tokens` tokens and can be written behind them.

        Full blocks are shared; a partly filled last one is copied. None, and no change, when the
        pool has no block left for the copy.
        """
        partial = num_tokens % self.block_size != 0
        if partial and not self._free:
            return None
        shared = self.share(table, num_tokens)
        if not partial:
            return Fork(shared, None)
        copy = Copy(table[len(shared)], self._take())
        shared.append(copy.target)
        return Fork(shared, copy)

    def free(self, table: list[int]) -> None:
        """Give up every block of `table` and empty it."""
        for block in reversed(table):
            assert self.ref_counts[block] > 0, f"block {block} is freed twice"
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self._free.append(block)
        table.clear()

    def _take(self) -> int:
        block = self._free.pop()
        assert self.ref_counts[block] == 0, f"block {block} was in the free list while owned"
        self.ref_counts[block] = 1
        return block
