"""Zero-variance stages on prompts of known pass rate, without a model.

A finite set of prompts is walked through epoch after epoch, a fixed number of groups a step, as in
training; verdicts are coin flips of each prompt's pass rate. Sampler, history, gate, shaping and
ledger are the ones that training uses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.errors import UserError
from compass.rl.placement.length import GroupLengths, LengthHistory
from compass.rl.sampler import PromptSampler
from compass.rl.zero_variance.expand import ExpandConfig, Ladder
from compass.rl.zero_variance.growth import plan_growth
from compass.rl.zero_variance.history import (
    PrefilterConfig,
    PromptHistory,
)
from compass.rl.zero_variance.ledger import Ledger
from compass.rl.zero_variance.outcome import GroupOutcome, SavedBy, differ
from compass.rl.zero_variance.reshape import ReshapeConfig
from compass.types import Prompt

MAX_TOKENS = 512
"""Completion limit of the made-up lengths."""
RATIO_LIMIT = 2.3
"""How many times fewer rollouts per useful group the staging must need than plain N = 8."""
FLAT_LIMIT = 0.17
"""How far below that of plain N = 8, relatively, its flat share must lie."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py zve`."""

    json: bool = False
    """End with one line of JSON."""
    num_prompts: int = 400
    """Prompts in the set."""
    num_prompts_per_step: int = 25
    """Groups rolled out a step."""
    num_steps: int = 400
    """Steps of a run; without a pre-filter each prompt is met
    num_steps * num_prompts_per_step / num_prompts = 25 times."""
    seed: int = 0
    """Of verdicts, lengths and order."""
    prefilter: PrefilterConfig = field(default_factory=PrefilterConfig)
    """Where a strategy has a pre-filter; `enabled` is the strategy's."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_prompts_per_step <= self.num_prompts:
            raise UserError(
                f"num_prompts_per_step={self.num_prompts_per_step} must be from 1 to "
                f"num_prompts={self.num_prompts}"
            )
        if self.num_steps < 4:
            raise UserError(f"num_steps={self.num_steps} must be at least 4: one a quarter")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Pass rates of a set of prompts."""

    name: str
    impossible: float
    """Share of prompts with pass rate 0."""
    trivial: float
    """Share of prompts with pass rate 1."""
    b: float = 1.0
    """The rest follows Beta(1, b); 1 is uniform."""
    gain: float = 0.0
    """How much the log-odds of the rest rise over the run."""

    def pass_rates(self, num_prompts: int) -> list[float]:
        """At the start of the run; quantiles instead of draws, so that the shares are exact."""
        num_zero, num_one = round(self.impossible * num_prompts), round(self.trivial * num_prompts)
        num_rest = num_prompts - num_zero - num_one
        rest = [1 - (1 - (i + 0.5) / num_rest) ** (1 / self.b) for i in range(num_rest)]
        return [0.0] * num_zero + [1.0] * num_one + rest

    def after(self, rate: float, progress: float) -> float:
        """The pass rate when a share `progress` of the run is over."""
        if self.gain == 0 or rate in (0, 1):
            return rate
        odds = rate / (1 - rate) * math.exp(self.gain * progress)
        return odds / (1 + odds)


MIXTURES = (
    Mixture(name="35% impossible, 25% trivial, rest uniform", impossible=0.35, trivial=0.25),
    Mixture(name="60% impossible, 5% trivial, rest Beta(1,3)", impossible=0.6, trivial=0.05, b=3),
    Mixture(
        name="20% impossible, rest Beta(1,3) learning (+6 nats)",
        impossible=0.2,
        trivial=0.0,
        b=3,
        gain=6,
    ),
)
"""The first is the one of the target figure."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What is done about flat groups."""

    name: str
    group_size: int = 8
    prefilter: bool = False
    expand: ExpandConfig = field(default_factory=lambda: ExpandConfig(enabled=False))
    reshape: bool = False
    dynamic_batches: int = 0
    """DAPO's dynamic sampling (arXiv 2503.14476): generate up to so many batches a step until
    there are enough groups that are not flat; flat ones and surplus are dropped."""


UNGATED = ExpandConfig(gated=False, max_added=3.0)
"""Every flat group to the end of the ladder."""

STRATEGIES = (
    Strategy(name="plain N=8"),
    Strategy(name="plain N=16", group_size=16),
    Strategy(name="plain N=32", group_size=32),
    Strategy(name="DAPO dynamic, <= 10 batches", dynamic_batches=10),
    Strategy(name="ungated ladder 8-16-32", expand=UNGATED),
    Strategy(name="pre-filter", prefilter=True),
    Strategy(name="pre-filter, ungated ladder", prefilter=True, expand=UNGATED),
    Strategy(name="all stages gated", prefilter=True, expand=ExpandConfig(), reshape=True),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One strategy on one mixture."""

    mixture: str
    strategy: str
    flat_share: float
    """Flat by verdict, after expansion, of the groups rolled out."""
    rollouts_per_useful_group: float
    """Rollouts for each group that trains on a difference of verdicts."""
    tokens_per_useful_group: float
    first_quarter: float
    """Rollouts per useful group in the first quarter of the steps: what a short run sees."""
    last_quarter: float
    """In the last quarter: what a long run tends to."""
    expanded: int
    """Rollouts spent on expansion."""
    residual_share: float
    """Groups that reach stage 4, of those rolled out."""


@dataclass(frozen=True, kw_only=True)
class Quarter:
    """What one quarter of a run spent and got."""

    rollouts: float
    tokens: float
    useful: int


class Simulation:
    """A run of one strategy over one mixture."""

    def __init__(self, mixture: Mixture, strategy: Strategy, cfg: Config) -> None:
        self._mixture = mixture
        self._strategy = strategy
        self._cfg = cfg
        self._rates = mixture.pass_rates(cfg.num_prompts)
        self._random = random.Random(cfg.seed)
        self._history = PromptHistory(
            replace(cfg.prefilter, enabled=strategy.prefilter), seed=cfg.seed
        )
        self._sampler = PromptSampler(
            [Prompt(id=str(i), messages=()) for i in range(cfg.num_prompts)],
            num_prompts_per_step=cfg.num_prompts_per_step,
            seed=cfg.seed,
            keep=lambda prompt: self._history.admit(prompt.id),
        )
        # With a beta all-right groups differ by length: what reaches stage 4 is wrong throughout.
        shaping = ReshapeConfig(beta=0.05)
        self._reshape = shaping.bind(MAX_TOKENS) if strategy.reshape else None
        self._lengths = LengthHistory()
        self._written: list[GroupLengths] = []
        """In the present step."""
        self.ledger = Ledger()

    def run(self) -> list[Quarter]:
        """All steps, and each quarter's account."""
        num_steps = self._cfg.num_steps
        quarters = []
        for quarter in range(4):
            before, useful = self._spent(), 0
            for step in range(quarter * num_steps // 4, (quarter + 1) * num_steps // 4):
                useful += self._step(step / num_steps)
            after = self._spent()
            quarters.append(
                Quarter(rollouts=after[0] - before[0], tokens=after[1] - before[1], useful=useful)
            )
        return quarters

    def _spent(self) -> tuple[float, float]:
        rows = ("base", "expand")
        return (
            sum(self.ledger[row, "rollouts"] for row in rows),
            sum(self.ledger[row, "tokens"] for row in rows),
        )

    def _step(self, progress: float) -> int:
        """One step; the number of groups it trains on."""
        useful, per_step = 0, self._cfg.num_prompts_per_step
        for _ in range(self._strategy.dynamic_batches or 1):
            prompts = self._sampler.next()
            growth = plan_growth(
                self._history,
                prompts,
                self._strategy.expand,
                group_size=self._strategy.group_size,
                expected_tokens=self._expected_tokens,
            )
            outcomes = [
                self._group(prompt, progress, growth.ladders[prompt.id]) for prompt in prompts
            ]
            self._history.merge([outcomes])
            self._lengths.merge([self._written])
            self._written = []
            self.ledger.skip(len(self._sampler.last_skipped))
            for outcome in outcomes:
                self.ledger.record(outcome)
            useful += sum(differ(outcome.verdicts) for outcome in outcomes)
            if useful >= per_step:
                break
        return min(useful, per_step)

    def _expected_tokens(self, prompt: Prompt) -> float:
        return self._lengths.mean(prompt.id, prompt.domain) or MAX_TOKENS

    def _group(self, prompt: Prompt, progress: float, ladder: Ladder) -> GroupOutcome:
        index = int(prompt.id)
        rate = self._mixture.after(self._rates[index], progress)
        verdicts: list[float] = []
        lengths: list[int] = []
        size = base = ladder.base
        while len(verdicts) < size:
            self._roll(size - len(verdicts), rate, index, verdicts, lengths)
            size = ladder.next_size(verdicts, size)
        self._written.append(
            GroupLengths(prompt_id=prompt.id, domain=prompt.domain, num_tokens=tuple(lengths))
        )
        return GroupOutcome(
            prompt_id=prompt.id,
            verdicts=tuple(verdicts),
            is_flat=not differ(verdicts),
            base_rollouts=base,
            base_tokens=sum(lengths[:base]),
            expand_rollouts=len(verdicts) - base,
            expand_tokens=sum(lengths[base:]),
            saved_by=self._saved_by(verdicts, lengths),
        )

    def _roll(
        self, count: int, rate: float, index: int, verdicts: list[float], lengths: list[int]
    ) -> None:
        """Append `count` rollouts; lengths vary by a third around a mean of the prompt's own."""
        mean = 100 + index * 7919 % 301
        for _ in range(count):
            verdicts.append(float(self._random.random() < rate))
            length = mean * (1 + (self._random.random() - 0.5) * 2 / 3)
            lengths.append(min(MAX_TOKENS, round(length)))

    def _saved_by(self, verdicts: list[float], lengths: list[int]) -> SavedBy:
        if differ(verdicts[: self._strategy.group_size]):
            return "base"
        if differ(verdicts):
            return "expand"
        if self._reshape is None:
            return "none"
        rewards = self._reshape(
            verdicts, lengths, [0.0] * len(verdicts), all_right=min(verdicts) >= 1
        )
        return "reshape" if differ([r for r in rewards if r is not None]) else "residual"


def simulate(mixture: Mixture, strategy: Strategy, cfg: Config) -> Result:
    """Run one strategy over one mixture."""
    simulation = Simulation(mixture, strategy, cfg)
    quarters = simulation.run()
    ledger = simulation.ledger
    useful = sum(quarter.useful for quarter in quarters)
    if not all(quarter.useful for quarter in quarters):
        raise UserError(
            f"num_steps={cfg.num_steps}: a quarter of them met no useful group; choose more"
        )
    first, last = quarters[0], quarters[-1]
    return Result(
        mixture=mixture.name,
        strategy=strategy.name,
        flat_share=ledger.flat_share,
        rollouts_per_useful_group=sum(q.rollouts for q in quarters) / useful,
        tokens_per_useful_group=sum(q.tokens for q in quarters) / useful,
        first_quarter=first.rollouts / first.useful,
        last_quarter=last.rollouts / last.useful,
        expanded=int(ledger["expand", "rollouts"]),
        residual_share=ledger.residual_share,
    )


def run(argv: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Print a table per mixture; the figures when `--json` asks for them.

    `ratio` is rollouts per useful group of plain N = 8 over those of all stages gated, on the first
    mixture; `flat_reduction` how far the flat share of the latter lies below the former's.
    """
    cfg = parse(Config, argv, description=description)
    results = [simulate(m, s, cfg) for m in MIXTURES for s in STRATEGIES]
    console = Console(highlight=False)
    console.width = max(console.width, 120)  # a pipe says 80, which would cut every figure
    for mixture in MIXTURES:
        console.print(_table(mixture.name, [r for r in results if r.mixture == mixture.name]))
    plain, staged = results[0], results[len(STRATEGIES) - 1]
    ratio = plain.rollouts_per_useful_group / staged.rollouts_per_useful_group
    flat_reduction = 1 - staged.flat_share / plain.flat_share
    console.print(
        f"{staged.strategy} against {plain.strategy}, first mixture: {ratio:.2f}x fewer rollouts "
        f"per useful group (at least {RATIO_LIMIT}x), flat share {flat_reduction:.0%} lower (at "
        f"least {FLAT_LIMIT:.0%}), {staged.residual_share:.1%} of groups reach stage 4"
    )
    if not cfg.json:
        return None
    return {
        "ratio": ratio,
        "limit": RATIO_LIMIT,
        "flat_reduction": flat_reduction,
        "flat_limit": FLAT_LIMIT,
        "residual_share": staged.residual_share,
        "results": [asdict(result) for result in results],
    }


def _table(title: str, results: Sequence[Result]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("strategy")
    for name in ("flat", "to stage 4", "rollouts/useful", "1st quarter", "4th", "tokens/useful"):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            r.strategy,
            f"{r.flat_share:.3f}",
            f"{r.residual_share:.3f}",
            f"{r.rollouts_per_useful_group:.1f}",
            f"{r.first_quarter:.1f}",
            f"{r.last_quarter:.1f}",
            f"{r.tokens_per_useful_group:,.0f}",
        )
    return table
