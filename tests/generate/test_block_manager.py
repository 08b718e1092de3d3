"""Blocks are neither lost nor owned twice, and tables keep what was written to them."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from compass.generate.block_manager import BlockManager


class TablesKeepTheirTokens(RuleBasedStateMachine):
    """Random histories against a model in which every sequence owns a plain list of tokens."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(num_blocks=12, block_size=4)
        self.memory: list[list[int]] = [[-1] * 4 for _ in range(12)]
        self.tokens: dict[int, list[int]] = {}
        self.live: dict[int, list[int]] = {}
        self.num_tables = 0
        self.num_tokens = 0

    def _add(self, table: list[int], tokens: list[int]) -> int:
        self.num_tables += 1
        self.live[self.num_tables] = table
        self.tokens[self.num_tables] = tokens
        return self.num_tables

    @rule(target=tables)
    def start(self) -> int:
        return self._add([], [])

    @rule(name=tables, count=st.integers(1, 13))
    def append(self, name: int, count: int) -> None:
        if name not in self.live:
            return
        table, tokens = self.live[name], self.tokens[name]
        before, free = list(table), self.blocks.num_free
        if not self.blocks.extend(table, len(tokens) + count):
            assert table == before
            assert self.blocks.num_free == free
            assert self.blocks.num_blocks_for(len(tokens) + count) - len(table) > free
            return
        for _ in range(count):
            self.num_tokens += 1
            block = table[len(tokens) // 4]
            assert self.blocks.ref_counts[block] == 1, "written while shared"
            self.memory[block][len(tokens) % 4] = self.num_tokens
            tokens.append(self.num_tokens)

    @rule(target=tables, name=tables)
    def fork(self, name: int) -> int:
        if name not in self.live:
            return self._add([], [])
        table, tokens = self.live[name], self.tokens[name]
        fork = self.blocks.fork(table, len(tokens))
        if fork is None:
            assert self.blocks.num_free == 0
            assert len(tokens) % 4 != 0
            return self._add([], [])
        if fork.copy is not None:
            self.memory[fork.copy.target] = list(self.memory[fork.copy.source])
        return self._add(fork.table, list(tokens))

    @rule(target=tables, name=tables, data=st.data())
    def share(self, name: int, data: st.DataObject) -> int:
        if name not in self.live:
            return self._add([], [])
        count = data.draw(st.integers(0, len(self.tokens[name])))
        table = self.blocks.share(self.live[name], count)
        return self._add(table, self.tokens[name][: count - count % 4])

    @rule(name=consumes(tables))
    def free(self, name: int) -> None:
        table = self.live.pop(name)
        self.blocks.free(table)
        assert table == []

    @invariant()
    def every_table_reads_back_its_tokens(self) -> None:
        for name, table in self.live.items():
            read = [token for block in table for token in self.memory[block]]
            assert read[: len(self.tokens[name])] == self.tokens[name]

    @invariant()
    def reference_counts_equal_owners(self) -> None:
        owners = Counter(block for table in self.live.values() for block in table)
        assert self.blocks.ref_counts == [owners[block] for block in range(12)]
        assert self.blocks.num_free == 12 - len(owners)


TestTablesKeepTheirTokens = TablesKeepTheirTokens.TestCase
TestTablesKeepTheirTokens.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None
)


def test_freeing_twice_is_caught() -> None:
    blocks = BlockManager(num_blocks=2, block_size=4)
    table: list[int] = []
    blocks.extend(table, 5)
    stale = list(table)
    blocks.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        blocks.free(stale)
