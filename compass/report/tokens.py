"""Tokens of rollouts in the page: eight bits for each number, in blocks that are inflated when one
of their rollouts is opened. page/decode.js reads them.

Shape legend: n completion tokens of one rollout.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROLLOUTS_PER_BLOCK = 32
LOGPROB_STEPS = 8
"""Per nat."""
MAX_ENTROPY, MAX_ADVANTAGE = 16.0, 8.0
"""Codes of entropies and advantages end here; both are of square roots, finer near 0."""
GAP_DECADES, GAP_STEPS = 8, 8
"""Codes of gaps are logarithmic: from 1e-7 on so many decades, each in so many steps."""


@dataclass(frozen=True, kw_only=True)
class TokenColumns:
    """A rollout's completion. Every array has n entries. Built by `token_columns`."""

    text: bytes
    sizes: NDArray
    """Bytes of each token in `text`."""
    logprobs: NDArray
    """The generator's."""
    gaps: NDArray
    """The trainer's minus the generator's; 0 where it was not trained, like what follows."""
    entropies: NDArray
    advantages: NDArray
    flips: NDArray
    uncertain: NDArray
    """bool: in ESPO's group of high entropy."""


def token_columns(table: pa.Table, *, rho: float | None) -> list[TokenColumns]:
    """Those of each row of a rollout file.

    Args:
        rho: share of tokens in the high-entropy group of two; None: there is no such group.
    """
    logprobs = _lists(table["rollout_logprobs"])
    trainer = _lists(table["trainer_logprobs"])
    entropies, advantages, flips = (_lists(table[n]) for n in ("entropies", "advantages", "flips"))
    columns = []
    for i, (text, sizes) in enumerate(_pieces(table["pieces"])):
        ours, nothing = logprobs[i], np.zeros(len(sizes), np.float32)
        assert ours is not None
        theirs, entropy, advantage, flip = trainer[i], entropies[i], advantages[i], flips[i]
        columns.append(
            TokenColumns(
                text=text,
                sizes=sizes,
                logprobs=ours,
                gaps=nothing if theirs is None else theirs - ours,
                entropies=nothing if entropy is None else entropy,
                advantages=nothing if advantage is None else advantage,
                flips=nothing if flip is None else flip,
                uncertain=(
                    nothing > 0 if entropy is None or rho is None else most_uncertain(entropy, rho)
                ),
            )
        )
    return columns


def most_uncertain(entropy_n: NDArray, rho: float) -> NDArray:
    """[n] bool: the max(1, ceil(rho n)) tokens of the highest entropy, ties to the earlier one
    (arXiv 2512.00499, section 3)."""
    chosen_n = np.zeros(len(entropy_n), bool)
    count = max(1, math.ceil(rho * len(entropy_n) - 1e-9))
    chosen_n[np.argsort(-entropy_n, kind="stable")[:count]] = True
    return chosen_n


def encode_block(rollouts: Sequence[TokenColumns]) -> bytes:
    """One plane after the other, each of all rollouts; deflated, without a header."""
    planes = [
        b"".join(r.text for r in rollouts),
        *(
            np.concatenate([encode(r) for r in rollouts]).astype(np.uint8).tobytes()
            for encode in PLANES
        ),
    ]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(b"".join(planes)) + deflate.flush()


def logprob_code(x: NDArray) -> NDArray:
    """0 for certain."""
    return np.clip(np.rint(-_number(x) * LOGPROB_STEPS), 0, 255)


def entropy_code(x: NDArray) -> NDArray:
    """Square root."""
    return np.rint(np.sqrt(np.clip(_number(x), 0, MAX_ENTROPY) / MAX_ENTROPY) * 255)


def advantage_code(x: NDArray) -> NDArray:
    """Square root with a sign; 128 is 0."""
    x = np.clip(_number(x), -MAX_ADVANTAGE, MAX_ADVANTAGE)
    return 128 + np.rint(np.sign(x) * np.sqrt(np.abs(x) / MAX_ADVANTAGE) * 127)


def gap_code(x: NDArray) -> NDArray:
    """Logarithm with a sign; 128 is less than 1e-7."""
    x = _number(x)
    steps = (np.log10(np.maximum(np.abs(x), 1e-30)) + GAP_DECADES - 1) * GAP_STEPS
    return 128 + np.sign(x) * np.clip(np.ceil(steps), 0, GAP_DECADES * GAP_STEPS)


PLANES = (
    lambda r: r.sizes & 255,
    lambda r: r.sizes >> 8,
    lambda r: logprob_code(r.logprobs),
    lambda r: gap_code(r.gaps),
    lambda r: entropy_code(r.entropies),
    lambda r: advantage_code(r.advantages),
    lambda r: np.clip(r.flips, 0, 255),
    lambda r: r.uncertain,
)
"""In the order in which page/decode.js has them."""


def _number(x: NDArray) -> NDArray:
    return np.nan_to_num(np.asarray(x, np.float64))


def _pieces(column: pa.ChunkedArray) -> Iterator[tuple[bytes, NDArray]]:
    """Bytes of each row, and how many of them are each token's."""
    for lists in column.chunks:
        told = lists.values.dictionary.to_pylist()
        size_of = np.array([len(piece) for piece in told], np.int64)
        indices, offsets = lists.values.indices.to_numpy(), lists.offsets.to_numpy()
        for begin, end in pairwise(offsets.tolist()):
            of_row = indices[begin:end]
            yield b"".join([told[i] for i in of_row.tolist()]), size_of[of_row]


def _lists(column: pa.ChunkedArray) -> list[NDArray | None]:
    """An array per row, or None."""
    lists = column.combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_pylist()
    there = lists.is_valid().to_pylist()
    return [
        values[offsets[i] : offsets[i + 1]] if is_there else None
        for i, is_there in enumerate(there)
    ]
