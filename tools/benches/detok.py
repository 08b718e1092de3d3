"""Decoding completions to text in the verifier workers, against decoding them in the parent.

The same completions are submitted to the same pool as token ids (workers decode) and as text that
the submitting thread decodes first. That thread is the generator's: what it spends is on the
critical path. `ratio` is its CPU time per completion when it decodes over that when it does not.
The whole parent's CPU time, the pool's own thread included, is given too, since both share one
interpreter lock. Interleaved; medians. No model.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benches.echo_verifier import digest, echo_digest
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from compass.config import parse
from compass.errors import UserError
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, Score

LIMIT = 5.0
"""Least ratio of the submitting thread's times that counts as off the critical path."""
PROMPT = Prompt(id="p", messages=())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py detok`."""

    json: bool = False
    """End with one line of JSON."""
    num_completions: int = 256
    """Submitted in one go."""
    num_tokens: int = 2048
    """Length of each."""
    vocab_size: int = 32_768
    """Of a byte-level tokenizer with random entries of up to eight bytes."""
    num_workers: int = 2
    """Verifier processes."""
    repeats: int = 5
    """Counted rounds, after one that is not."""

    def __post_init__(self) -> None:
        if self.vocab_size < 256:
            raise UserError(f"vocab_size={self.vocab_size} must be at least 256: one a byte")
        for name in ("num_completions", "num_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU seconds of the parent for one batch."""

    submitting_thread: float
    """Until everything is submitted."""
    process: float
    """All threads, until everything is scored."""


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    draw = random.Random(0)
    completions = [
        [draw.randrange(cfg.vocab_size) for _ in range(cfg.num_tokens)]
        for _ in range(cfg.num_completions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_wide_tokenizer(Path(folder), cfg.vocab_size)
        tokenizer = Tokenizer.from_dir(folder)
        config = PoolConfig(num_workers=cfg.num_workers, max_pending=cfg.num_completions)
        with VerifierPool(config, tokenizer_directory=folder, verify=echo_digest) as pool:
            check_texts(pool, tokenizer, completions)
            rounds = [
                (
                    spend(pool, completions, lambda key, ids: submit_ids(pool, key, ids)),
                    spend(
                        pool, completions, lambda key, ids: submit_text(pool, tokenizer, key, ids)
                    ),
                )
                for _ in range(cfg.repeats + 1)
            ][1:]
    ours, peer = (
        Spent(
            submitting_thread=statistics.median(side.submitting_thread for side in sides),
            process=statistics.median(side.process for side in sides),
        )
        for sides in zip(*rounds, strict=True)
    )
    ratio = peer.submitting_thread / ours.submitting_thread
    _print(cfg, ours, peer, ratio)
    if not cfg.json:
        return None
    return {
        "ratio": ratio,
        "limit": LIMIT,
        "ratio_process": peer.process / ours.process,
        "submit_seconds_per_completion": ours.submitting_thread / cfg.num_completions,
        "decode_seconds_per_completion": peer.submitting_thread / cfg.num_completions,
        "tokens_per_completion": cfg.num_tokens,
        "cpu_seconds": [
            {"decode in workers": asdict(mine), "decode in parent": asdict(other)}
            for mine, other in rounds
        ],
    }


def submit_ids(pool: VerifierPool, key: Hashable, token_ids: Sequence[int]) -> None:
    """What `compass.rl.rollout` does with a completion."""
    pool.submit(key, PROMPT, token_ids, finished=True)


def submit_text(
    pool: VerifierPool, tokenizer: Tokenizer, key: Hashable, token_ids: Sequence[int]
) -> None:
    """What it would do without decoding workers."""
    pool.submit_text(key, PROMPT, tokenizer.decode(token_ids), finished=True)


def spend(
    pool: VerifierPool,
    completions: Sequence[Sequence[int]],
    submit: Callable[[Hashable, Sequence[int]], None],
) -> Spent:
    """Submit every completion and wait for its score."""
    process, thread = time.process_time(), time.thread_time()
    for key, token_ids in enumerate(completions):
        submit(key, token_ids)
    submitted = time.thread_time() - thread
    assert len(pool.drain()) == len(completions)
    return Spent(submitting_thread=submitted, process=time.process_time() - process)


def check_texts(
    pool: VerifierPool, tokenizer: Tokenizer, completions: Sequence[Sequence[int]]
) -> None:
    """The gate: workers decode to the text that the parent would have."""
    for key, token_ids in enumerate(completions):
        submit_ids(pool, key, token_ids)
    scores: dict[Hashable, Score] = dict(pool.drain())
    for key, token_ids in enumerate(completions):
        expected = digest(tokenizer.decode(token_ids))
        assert scores[key].reason == expected, f"the text of completion {key} differs"


def write_wide_tokenizer(directory: Path, vocab_size: int) -> None:
    """A byte-level tokenizer whose entries beyond the 256 bytes are random strings of two to eight
    bytes. It is good for decoding only: there are no merges."""
    draw = random.Random(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    while len(vocab) < vocab_size:
        vocab.setdefault("".join(draw.choices(alphabet, k=draw.randint(2, 8))), len(vocab))
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))


def _print(cfg: Config, ours: Spent, peer: Spent, ratio: float) -> None:
    table = Table(
        title=f"{cfg.num_completions} completions of {cfg.num_tokens} tokens, CPU microseconds of "
        "the parent per completion"
    )
    table.add_column("decoded in")
    for column in ("submitting thread", "whole process"):
        table.add_column(column, justify="right")
    for name, spent in (("workers", ours), ("parent", peer)):
        table.add_row(
            name,
            f"{spent.submitting_thread / cfg.num_completions * 1e6:,.0f}",
            f"{spent.process / cfg.num_completions * 1e6:,.0f}",
        )
    console = Console()
    console.print(table)
    verdict = "met" if ratio >= LIMIT else "MISSED"
    console.print(
        f"off the generator's thread: {ratio:.1f}x less of its time (limit {LIMIT:g}: {verdict})"
    )
