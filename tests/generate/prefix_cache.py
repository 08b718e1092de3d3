"""A KV cache and a model made of tuples: a token's "keys and values" are all the tokens it saw."""

from __future__ import annotations

from compass.generate.scheduler import Step
from compass.generate.sequence import Sequence

BLOCK_SIZE = 4
STOP = 0


def next_token(prefix: tuple[int, ...], key: int) -> int:
    """Stands for model and sampling: any function of the tokens seen and of the noise."""
    return hash((prefix, key)) % 12


def alone(prompt: list[int], key: int, max_tokens: int, stop: int | None = STOP) -> list[int]:
    """Prompt and completion as a loop would write them."""
    tokens = list(prompt)
    while len(tokens) < max_tokens:
        tokens.append(next_token(tuple(tokens), key))
        if tokens[-1] == stop:
            break
    return tokens


class PrefixCache:
    """A cache whose slot holds the whole prefix that its token saw, as keys and values do."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks: list[list[tuple[int, ...]]] = [[()] * BLOCK_SIZE for _ in range(num_blocks)]

    def run(self, step: Step) -> list[int]:
        """Feed the chunks, draw the samples, then make the copies."""
        last: list[tuple[int, ...]] = []
        for sequence, start, num_tokens in step.chunks:
            for position in range(start, start + num_tokens):
                before = self._read(sequence, position - 1) if position else ()
                assert before == tuple(sequence.token_ids[:position]), "reads another's slots"
                self._write(sequence, position, (*before, sequence.token_ids[position]))
            last.append(self._read(sequence, start + num_tokens - 1))
        for source, target in step.copies:
            self.blocks[target] = list(self.blocks[source])
        return [next_token(last[chunk], sequence.key) for sequence, chunk in step.samples]

    def _read(self, sequence: Sequence, position: int) -> tuple[int, ...]:
        return self.blocks[sequence.block_table[position // BLOCK_SIZE]][position % BLOCK_SIZE]

    def _write(self, sequence: Sequence, position: int, prefix: tuple[int, ...]) -> None:
        block = self.blocks[sequence.block_table[position // BLOCK_SIZE]]
        block[position % BLOCK_SIZE] = prefix
