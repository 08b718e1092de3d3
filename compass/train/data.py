"""Supervised data: rows of a JSONL file, packed into the microbatches of each step.

Shape legend: N tokens of one example, T fed tokens of a microbatch, R loss tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compass.bins import first_fit_decreasing
from compass.errors import UserError
from compass.rows import files_of, read_rows
from compass.text.tokenizer import Tokenizer
from compass.train.conversation import conversation_of
from compass.types import Microbatch


@dataclass(frozen=True, kw_only=True)
class SftDataConfig:
    """Which conversations are learned from, and how many at a time."""

    path: tuple[Path, ...]
    """Files or globs: JSON Lines, JSON or parquet. Each row has `messages`, `conversations`
    (ShareGPT), `instruction` and `output` (Alpaca), or `prompt` and `completion`."""
    num_examples_per_step: int = 32
    """Rows of one optimizer step, over all ranks; a multiple of the number of ranks."""
    max_len: int = 4096
    """Longest example, in tokens."""
    drop_long: bool = False
    """Leave out rows longer than `max_len`; otherwise such a row is an error."""
    last_turn_only: bool = False
    """Learn only the last assistant message of a row. Needed for several turns under a chat
    template that rewrites earlier turns, as Qwen3's does with their reasoning."""
    max_tokens_per_microbatch: int = 8192
    """Most tokens one rank runs in one forward pass."""
    shuffle: bool = True
    """A new order each epoch; otherwise the order of the file, for hand-made curricula."""
    seed: int = 0
    """Of the shuffle."""
    validation: tuple[Path, ...] = ()
    """Files of held-out rows, in the forms of `path`; their loss is logged as `eval/loss`."""
    validation_interval: int = 20
    """Steps between validations; there is one before the first step and one after the last too."""

    def __post_init__(self) -> None:
        if self.validation_interval < 1:
            raise UserError(
                f"data.validation_interval={self.validation_interval} must be at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class SftExample:
    """One tokenised conversation. Built by `load_sft`."""

    token_ids: Tensor
    """[N] int64."""
    loss_mask: Tensor
    """[N] bool: tokens to learn; the first is never one of them, as nothing predicts it."""

    @property
    def num_fed_tokens(self) -> int:
        """The last token is only ever a target."""
        return len(self.token_ids) - 1

    @property
    def num_loss_tokens(self) -> int:
        return int(self.loss_mask.sum())


@dataclass(frozen=True, kw_only=True)
class SftStep:
    """One rank's share of an optimizer step. Built by `SftBatches`."""

    microbatches: tuple[Microbatch, ...]
    """Equally many on every rank, and none empty."""
    num_examples: int
    """Of all ranks."""
    num_loss_tokens: int
    """Of all ranks: the denominator of the token mean."""
    epoch: int
    """Of the step's first example."""


def load_sft(
    paths: Path | Sequence[Path],
    tokenizer: Tokenizer,
    max_len: int,
    *,
    drop_long: bool = False,
    last_turn_only: bool = False,
) -> list[SftExample]:
    """Read and tokenise files of conversations (`compass.train.conversation`), in their order.

    Raises UserError, with FILE:LINE, on a row that is no conversation, that the chat template
    cannot mark, or that is longer than `max_len` (with `drop_long`, when all rows are).
    """
    examples: list[SftExample] = []
    for where, row in read_rows(paths):
        try:
            said = conversation_of(row)
            token_ids, loss_mask = tokenizer.encode_chat(
                said.messages,
                tools=said.tools,
                untrained=said.untrained,
                last_turn_only=last_turn_only,
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if len(token_ids) <= max_len:
            mask = torch.tensor(loss_mask)
            mask[0] = False
            examples.append(SftExample(token_ids=torch.tensor(token_ids), loss_mask=mask))
        elif not drop_long:
            raise UserError(
                f"{where}: {len(token_ids)} tokens, more than max_len {max_len}: "
                "raise max_len, or leave long rows out with drop_long"
            )
    if not examples:
        names = ", ".join(map(str, files_of(paths)))
        raise UserError(f"{names}: every row is longer than max_len {max_len}: raise it")
    return examples


def pack_sft(examples: Sequence[SftExample]) -> Microbatch:
    """Examples end to end; every loss token has weight 1."""
    lengths = tuple(example.num_fed_tokens for example in examples)
    starts = np.cumsum((0, *lengths[:-1])).tolist()
    loss_rows = [example.loss_mask[1:].nonzero().squeeze(1) for example in examples]
    num_loss = torch.tensor([len(rows) for rows in loss_rows])
    rows_R = torch.cat([rows + start for rows, start in zip(loss_rows, starts, strict=True)])
    return Microbatch(
        token_ids=torch.cat([example.token_ids[:-1] for example in examples]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        sequence_lengths=lengths,
        rows=rows_R,
        targets=torch.cat(
            [e.token_ids[1:][rows] for e, rows in zip(examples, loss_rows, strict=True)]
        ),
        sequence_ids=torch.arange(len(examples)).repeat_interleave(num_loss),
        advantages=torch.ones(len(rows_R)),
        flat_signs=torch.zeros(len(examples), dtype=torch.int64),
        weights=torch.ones(len(examples)),
        rollout_logprobs=torch.zeros(len(rows_R)),
        routed_experts=None,
    )


def split_step(
    lengths: Sequence[int], world_size: int, max_tokens: int
) -> list[list[tuple[int, ...]]]:
    """Deal a step's examples to ranks and microbatches.

    Example i belongs to rank i % world_size. Every rank gets the same number of microbatches,
    because each forward pass is collective: the fewest with which first-fit-decreasing keeps all
    of them within `max_tokens` on the fullest rank.

    Args:
        lengths: fed tokens of each example, at most `max_tokens`; a multiple of `world_size`.

    Returns:
        indices into `lengths`, as [rank][microbatch][example]; no microbatch is empty.
    """
    assert len(lengths) % world_size == 0
    assert max(lengths) <= max_tokens
    ranks = [
        first_fit_decreasing(range(rank, len(lengths), world_size), lengths, max_tokens)
        for rank in range(world_size)
    ]
    most = max(len(bins) for bins in ranks)
    return [_split_until(bins, most, lengths) for bins in ranks]


class SftBatches:
    """Deals examples to steps, for one rank, from a position that is one integer.

    Every rank holds all examples, so each works out the same deal without communication.
    """

    def __init__(
        self,
        examples: Sequence[SftExample],
        *,
        num_examples_per_step: int,
        max_tokens_per_microbatch: int,
        rank: int,
        world_size: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        """Raises UserError when ranks cannot share a step equally, or an example does not fit."""
        if num_examples_per_step % world_size:
            raise UserError(
                f"num_examples_per_step {num_examples_per_step} is not a multiple of the "
                f"{world_size} ranks: choose one that is"
            )
        longest = max(example.num_fed_tokens for example in examples)
        if longest > max_tokens_per_microbatch:
            raise UserError(
                f"the longest example feeds {longest} tokens, more than "
                f"max_tokens_per_microbatch {max_tokens_per_microbatch}: raise it, or lower max_len"
            )
        self.cursor = 0
        """Examples dealt so far, over all epochs: the whole state."""
        self._examples = examples
        self._per_step = num_examples_per_step
        self._max_tokens = max_tokens_per_microbatch
        self._rank = rank
        self._world_size = world_size
        self._seed = seed if shuffle else None

    def next(self) -> SftStep:
        """This rank's microbatches of the next step."""
        places = range(self.cursor, self.cursor + self._per_step)
        orders = {epoch: self._order(epoch) for epoch in {self._epoch(p) for p in places}}
        chosen = [
            self._examples[orders[self._epoch(place)][place % len(self._examples)]]
            for place in places
        ]
        lengths = [example.num_fed_tokens for example in chosen]
        mine = split_step(lengths, self._world_size, self._max_tokens)[self._rank]
        epoch = self._epoch(self.cursor)
        self.cursor += self._per_step
        return SftStep(
            microbatches=tuple(pack_sft([chosen[i] for i in indices]) for indices in mine),
            num_examples=len(chosen),
            num_loss_tokens=sum(example.num_loss_tokens for example in chosen),
            epoch=epoch,
        )

    def steps_of(self, num_epochs: int) -> int:
        """Steps that deal every example at least `num_epochs` times."""
        return -(-num_epochs * len(self._examples) // self._per_step)

    def state_dict(self) -> dict[str, int]:
        """The position; JSON values."""
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state_dict`."""
        self.cursor = state["cursor"]

    def _epoch(self, place: int) -> int:
        return place // len(self._examples)

    def _order(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(len(self._examples))
        # numpy takes no negative numbers.
        sign = () if self._seed >= 0 else (1,)
        draw = np.random.default_rng((abs(self._seed), epoch, *sign))
        return draw.permutation(len(self._examples))


def _split_until(
    bins: list[list[int]], count: int, lengths: Sequence[int]
) -> list[tuple[int, ...]]:
    """Halve the fullest bins that can be halved until there are `count`."""
    bins = list(bins)
    while len(bins) < count:
        fullest = max(
            (b for b in bins if len(b) > 1), key=lambda members: sum(lengths[i] for i in members)
        )
        bins.remove(fullest)
        bins += [fullest[::2], fullest[1::2]]
    return [tuple(sorted(members)) for members in bins]
