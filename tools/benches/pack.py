"""Packing of the update: padding and imbalance over ranks, on long-tailed lengths.

No model runs: the plan of `compass.rl.pack` is computed for simulated ranks and priced in
floating-point operations (`compass.models.flops`, forward pass). Ranks meet in collectives in every
microbatch, so a step costs the dearest rank of each microbatch, summed. The peer is the usual way:
whole prompts dealt to ranks like cards, each rank packing its own by first-fit decreasing; `ratio`
is the peer's cost over ours, at the largest world. Padding is tokens fed over real ones, fillers of
ranks that run out included: sequences are packed end to end, so nothing else is padded. (Attention
off CUDA pads its score rectangles by up to `compass.models.layers.attention.MAX_PADDING` inside;
that is not counted here.)

Lengths are lognormal with sigma 1, some of the variance shared by the samples of a prompt. Two
visits of the same prompts are drawn; rollouts are shared among ranks by what the first visit
teaches, and the second one is packed. Moved is the share of tokens that then have to change ranks.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from benches.batch import MEDIAN_TOKENS, MOST_TOKENS, PROMPT_TOKENS, spec_named
from rich.console import Console
from rich.table import Table

from compass.bins import first_fit_decreasing
from compass.config import parse
from compass.errors import UserError
from compass.models.flops import forward_flops
from compass.rl.pack import PackConfig
from compass.rl.placement.balance import plan_microbatches
from compass.rl.placement.length import GroupLengths, LengthHistory
from compass.rl.placement.schedule import ScheduleConfig
from compass.rl.placement.shares import share_rollouts
from compass.types import Prompt

MAX_PADDING, MAX_IMBALANCE = 1.02, 1.01
"""Mean padding and imbalance that are good enough."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py pack`."""

    json: bool = False
    """End with one line of JSON."""
    spec: str = "debug-4m"
    """Named model whose operations are counted."""
    num_prompts: int = 16
    """Prompts of one rollout batch, of 32 tokens."""
    group_size: int = 8
    """Completions of each."""
    shared_variance: float = 0.5
    """Share of the variance of log lengths that belongs to the prompt."""
    max_tokens_per_microbatch: int = PackConfig().max_tokens_per_microbatch
    """Cap of a microbatch."""
    worlds: tuple[int, ...] = (2, 4, 8)
    """Numbers of ranks to simulate."""
    num_batches: int = 50
    """Random batches."""

    def __post_init__(self) -> None:
        if not 0 <= self.shared_variance <= 1:
            raise UserError(f"shared_variance={self.shared_variance} must be between 0 and 1")
        for name in ("num_prompts", "group_size", "num_batches", "max_tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


class Outcome(NamedTuple):
    """Of one batch packed one way."""

    padding: float
    imbalance: float
    cost: float
    num_microbatches: int
    moved: float
    """Share of tokens that change ranks."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Means over batches, ours and the peer's."""

    num_ranks: int
    padding: float
    imbalance: float
    worst_imbalance: float
    moved: float
    num_microbatches: float
    peer_padding: float
    peer_imbalance: float
    peer_num_microbatches: float
    ratio: float


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Simulate, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    worlds = [_world(cfg, num_ranks) for num_ranks in cfg.worlds]
    table = Table(title=f"{cfg.num_prompts} x {cfg.group_size} completions, median 40, sigma 1")
    for column in (
        *("ranks", "padding", "imbalance", "worst", "microbatches", "moved"),
        *("peer's padding", "imbalance", "microbatches", "peer's cost / ours"),
    ):
        table.add_column(column, justify="right")
    for w in worlds:
        table.add_row(
            *(str(w.num_ranks), f"{w.padding:.4f}", f"{w.imbalance:.4f}"),
            *(f"{w.worst_imbalance:.4f}", f"{w.num_microbatches:.1f}", f"{w.moved:.1%}"),
            *(f"{w.peer_padding:.4f}", f"{w.peer_imbalance:.3f}"),
            *(f"{w.peer_num_microbatches:.1f}", f"{w.ratio:.3f}"),
        )
    Console(width=110).print(table)
    fine = all(w.padding <= MAX_PADDING and w.imbalance <= MAX_IMBALANCE for w in worlds)
    print(f"padding <= {MAX_PADDING} and imbalance <= {MAX_IMBALANCE}: {'yes' if fine else 'NO'}")
    if not cfg.json:
        return None
    return {
        "ratio": worlds[-1].ratio,
        "limit": 1.0,
        "peer": "whole prompts, first-fit decreasing",
        "padding": max(w.padding for w in worlds),
        "max_padding": MAX_PADDING,
        "imbalance": max(w.imbalance for w in worlds),
        "max_imbalance": MAX_IMBALANCE,
        "worlds": [asdict(w) for w in worlds],
    }


def _world(cfg: Config, num_ranks: int) -> World:
    pairs = [_batch(cfg, num_ranks, random.Random(seed)) for seed in range(cfg.num_batches)]
    ours, peer = ([pair[side] for pair in pairs] for side in range(2))
    mean = statistics.fmean
    return World(
        num_ranks=num_ranks,
        padding=mean(o.padding for o in ours),
        imbalance=mean(o.imbalance for o in ours),
        worst_imbalance=max(o.imbalance for o in ours),
        moved=mean(o.moved for o in ours),
        num_microbatches=mean(o.num_microbatches for o in ours),
        peer_padding=mean(o.padding for o in peer),
        peer_imbalance=mean(o.imbalance for o in peer),
        peer_num_microbatches=mean(o.num_microbatches for o in peer),
        ratio=sum(o.cost for o in peer) / sum(o.cost for o in ours),
    )


def _batch(cfg: Config, num_ranks: int, draw: random.Random) -> tuple[Outcome, Outcome]:
    """Our outcome and the peer's on one batch."""
    prompts = [Prompt(id=str(i), messages=()) for i in range(cfg.num_prompts)]
    mean_logs = [
        math.log(MEDIAN_TOKENS) + draw.gauss(0, math.sqrt(cfg.shared_variance)) for _ in prompts
    ]
    earlier, written = ([_lengths(cfg, mean, draw) for mean in mean_logs] for _ in range(2))
    fed = [PROMPT_TOKENS + length - 1 for of_prompt in written for length in of_prompt]
    spec = spec_named(cfg.spec)
    costs = [
        forward_flops(spec, n, num_scored=length)
        for n, length in zip(fed, (n for of_prompt in written for n in of_prompt), strict=True)
    ]
    holders = _holders(cfg, prompts, earlier, num_ranks)
    plan = plan_microbatches(
        fed, costs, holders, num_ranks=num_ranks, capacity=cfg.max_tokens_per_microbatch
    )
    moved = sum(fed[i] for i, rank in plan.ranks.items() if rank != holders[i]) / sum(fed)
    ours = _outcome(plan.by_rank, fed, costs, moved)
    dealt = [
        [p * cfg.group_size + s for p in of_rank for s in range(cfg.group_size)]
        for of_rank in (range(cfg.num_prompts)[rank::num_ranks] for rank in range(num_ranks))
    ]
    first_fit = [first_fit_decreasing(d, fed, cfg.max_tokens_per_microbatch) for d in dealt]
    return ours, _outcome(first_fit, fed, costs, 0.0)


def _lengths(cfg: Config, mean_log: float, draw: random.Random) -> list[int]:
    sigma = math.sqrt(1 - cfg.shared_variance)
    drawn = [math.exp(draw.gauss(mean_log, sigma)) for _ in range(cfg.group_size)]
    return [int(min(MOST_TOKENS, max(1, length))) for length in drawn]


def _holders(
    cfg: Config, prompts: Sequence[Prompt], earlier: Sequence[Sequence[int]], num_ranks: int
) -> list[int]:
    """Who writes each rollout, after a visit that wrote `earlier`."""
    history = LengthHistory()
    history.merge(
        [
            [
                GroupLengths(prompt_id=prompt.id, domain="math", num_tokens=tuple(of_prompt))
                for prompt, of_prompt in zip(prompts, earlier, strict=True)
            ]
        ]
    )
    schedule = ScheduleConfig()
    shares = share_rollouts(
        prompts,
        [history.predict(p.id, p.domain, quantile=schedule.quantile) or 1.0 for p in prompts],
        group_size=cfg.group_size,
        world_size=num_ranks,
        balance=schedule.balance,
    )
    writers = {
        (share.prompt.id, sample): share.writer
        for share in shares
        if share.writer is not None  # a queue would leave it open
        for sample in range(share.first_sample, share.first_sample + share.num_samples)
    }
    return [writers[prompt.id, s] for prompt in prompts for s in range(cfg.group_size)]


def _outcome(
    bins: Sequence[Sequence[Sequence[int]]],
    fed: Sequence[int],
    costs: Sequence[float],
    moved: float,
) -> Outcome:
    """Of microbatches by rank; a rank that has fewer than another feeds fillers of one token."""
    num_microbatches = max(len(of_rank) for of_rank in bins)
    by_rank = [
        [sum(costs[i] for i in members) for members in of_rank]
        + [0.0] * (num_microbatches - len(of_rank))
        for of_rank in bins
    ]
    slowest = sum(max(at_once) for at_once in zip(*by_rank, strict=True))
    num_fillers = sum(not cost for of_rank in by_rank for cost in of_rank)
    return Outcome(
        padding=1 + num_fillers / sum(fed),
        imbalance=slowest * len(bins) / sum(costs),
        cost=slowest,
        num_microbatches=num_microbatches,
        moved=moved,
    )
