"""Rewards scored while others still decode, against scoring after the last token.

Verifiers that take 20, 60 and 150 ms, by prompt, score what a random policy writes; its lengths are
those after which it draws one of many stop tokens, so they have a long tail. Three times are taken
in turn: generation alone (Tg), scoring all of it with the same worker processes (Tr), and
`compass.rl.rollout`, which does both at once. `ratio` is the speed-up that overlapping achieves, as
a share of the most it could: (Tg + Tr) / max(Tg, Tr). There are as many workers as make Tr about as
long as Tg, which is where most can be won and where it is hardest. Wall time, since verifiers wait.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benches.batch import spec_named
from benches.slow_verifier import sleep_and_score
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, init_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.mailbox import Mailbox
from compass.metrics import Stopwatch
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.rl.encoded_prompts import EncodedPrompts
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.schedule import RolloutSchedule, ScheduleConfig
from compass.rl.rollout import all_rollouts, rollout
from compass.rl.writer import RolloutWriter
from compass.text.tokenizer import Tokenizer
from compass.types import Completion, Prompt, SamplingParams

LIMIT = 0.92
"""Least share of the ideal speed-up that counts as good enough."""
VERIFIER_SECONDS = (0.02, 0.06, 0.15)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py reward`."""

    json: bool = False
    """End with one line of JSON."""
    spec: str = "debug-4m"
    """Named model; random weights."""
    num_prompts: int = 32
    """Prompts of one rollout batch."""
    group_size: int = 8
    """Completions of each."""
    max_num_seqs: int = 128
    """Completions decoded at once."""
    max_completion_tokens: int = 256
    """Longest completion."""
    num_stop_tokens: int = 48
    """Token ids that end a completion."""
    num_workers: int | None = None
    """Verifier processes; None: as many as make scoring take about as long as generation."""
    repeats: int = 3
    """Counted rounds of the three, after one that is not."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"num_workers={self.num_workers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Round:
    """Wall seconds of one round."""

    generate: float
    """Tg: generation alone."""
    score: float
    """Tr: scoring alone, by the same processes."""
    overlapped: float
    """Both at once."""
    reward_wait: float
    """Part of `overlapped`, after the last token."""

    @property
    def share_of_ideal(self) -> float:
        """(Tg + Tr) / overlapped, over (Tg + Tr) / max(Tg, Tr)."""
        return max(self.generate, self.score) / self.overlapped


class Workload:
    """The same rollout batch for both ways."""

    def __init__(self, cfg: Config, tokenizer_directory: Path) -> None:
        spec = spec_named(cfg.spec)
        self.cfg = cfg
        self.topology = init_topology(ParallelConfig(device="cpu"))
        policy = build_policy(
            spec, self.topology, PolicyConfig(), lambda policy: init_policy(policy, 0)
        )
        self.generator = Generator(
            policy, GeneratorConfig(max_num_seqs=cfg.max_num_seqs, kv_cache_gb=0.5), self.topology
        )
        self.tokenizer_directory = tokenizer_directory
        self.encoded = EncodedPrompts(Tokenizer.from_dir(tokenizer_directory))
        self.stop_token_ids = tuple(range(spec.vocab_size - cfg.num_stop_tokens, spec.vocab_size))
        self.sampling = SamplingParams(
            max_completion_tokens=cfg.max_completion_tokens, stop_token_ids=self.stop_token_ids
        )
        self.prompts = [
            Prompt(
                id=f"{i}",
                messages=({"role": "user", "content": f"{i} + {i} = ?"},),
                answer=str(VERIFIER_SECONDS[i % len(VERIFIER_SECONDS)]),
            )
            for i in range(cfg.num_prompts)
        ]
        self.mailbox = Mailbox(self.topology)
        self.schedule = RolloutSchedule(
            ScheduleConfig(), self.topology, max_completion_tokens=cfg.max_completion_tokens
        )

    @property
    def verifier_seconds(self) -> float:
        """Of all completions together."""
        return sum(float(p.answer or 0) for p in self.prompts) * self.cfg.group_size

    def pool(self, num_workers: int) -> VerifierPool:
        """Its processes, ready."""
        return VerifierPool(
            PoolConfig(num_workers=num_workers),
            tokenizer_directory=self.tokenizer_directory,
            stop_token_ids=self.stop_token_ids,
            verify=sleep_and_score,
        )

    def generate(self) -> list[Completion]:
        """The batch, with nothing scored."""
        requests = [
            Request(
                prompt_id=prompt.id,
                prompt_token_ids=self.encoded.of(prompt),
                num_samples=self.cfg.group_size,
                sampling=self.sampling,
            )
            for prompt in self.prompts
        ]
        return list(self.generator.generate(requests, seed=0))

    def score(self, pool: VerifierPool, completions: Sequence[Completion]) -> dict[Any, float]:
        """Verdicts of a batch that is complete."""
        prompts = {prompt.id: prompt for prompt in self.prompts}
        for c in completions:
            finished = c.finish_reason == "stop"
            pool.submit(
                (c.prompt_id, c.sample), prompts[c.prompt_id], c.token_ids, finished=finished
            )
        return {key: score.verdict for key, score in pool.drain()}

    def roll_out(self, pool: VerifierPool, stopwatch: Stopwatch) -> dict[Any, float]:
        """Verdicts of the same batch, scored as each completion ends."""
        writer = RolloutWriter(
            generator=self.generator,
            pool=pool,
            encoded=self.encoded,
            mailbox=self.mailbox,
            sampling=self.sampling,
        )
        groups = rollout(
            writer,
            self.prompts,
            share=self.schedule.share,
            group_size=self.cfg.group_size,
            seed=0,
            written=RankRollouts(self.topology.rank),
            stopwatch=stopwatch,
        )
        return {(r.prompt_id, r.sample): r.score.verdict for r in all_rollouts(groups)}


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(folder)
        work = Workload(cfg, Path(folder))
        work.generate()
        started = time.perf_counter()
        completions = work.generate()
        balanced = round(work.verifier_seconds / (time.perf_counter() - started))
        num_workers = cfg.num_workers or max(1, balanced)
        with work.pool(num_workers) as pool:
            rounds = [time_round(work, pool) for _ in range(cfg.repeats + 1)][1:]
    dist.destroy_process_group()
    share = statistics.median(r.share_of_ideal for r in rounds)
    speed_up = statistics.median((r.generate + r.score) / r.overlapped for r in rounds)
    num_tokens = sum(len(c.token_ids) for c in completions)
    _print(cfg, num_workers, num_tokens, rounds, share, speed_up)
    if not cfg.json:
        return None
    return {
        "ratio": share,
        "limit": LIMIT,
        "ratio_serial": speed_up,
        "num_workers": num_workers,
        "completion_tokens": num_tokens,
        "wall_seconds": [asdict(r) for r in rounds],
    }


def time_round(work: Workload, pool: VerifierPool) -> Round:
    """Generation, scoring, and both at once; the verdicts must be the same."""
    clock, stopwatch = Stopwatch(), Stopwatch()
    with clock("generate"):
        completions = work.generate()
    with clock("score"):
        serial = work.score(pool, completions)
    with clock("overlapped"):
        overlapped = work.roll_out(pool, stopwatch)
    assert serial == overlapped, "the two ways disagree about a verdict"
    return Round(**clock.seconds, reward_wait=stopwatch.seconds["reward_wait"])


def _print(
    cfg: Config,
    num_workers: int,
    num_tokens: int,
    rounds: Sequence[Round],
    share: float,
    speed_up: float,
) -> None:
    table = Table(
        title=f"{cfg.spec}, {cfg.num_prompts} x {cfg.group_size} completions, {num_tokens:,} "
        f"tokens, {num_workers} verifier processes, wall seconds"
    )
    for column in (
        "generation alone",
        "scoring alone",
        "overlapped",
        "wait at the end",
        "of ideal",
    ):
        table.add_column(column, justify="right")
    for r in rounds:
        table.add_row(
            f"{r.generate:.2f}",
            f"{r.score:.2f}",
            f"{r.overlapped:.2f}",
            f"{r.reward_wait:.2f}",
            f"{r.share_of_ideal:.1%}",
        )
    console = Console()
    console.print(table)
    verdict = "met" if share >= LIMIT else "MISSED"
    console.print(
        f"medians: {speed_up:.2f}x faster than one after the other, {share:.1%} of the most "
        f"(limit {LIMIT:.0%}: {verdict})"
    )
