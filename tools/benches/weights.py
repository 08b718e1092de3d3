"""What a prompt weighs in the gradient by its pass rate, when flat groups grow: exact, no model.

Every way in which a group's verdicts can come out is listed with its probability; ladder, weights
and advantages are those of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.rl.advantage import AdvantageConfig, group_advantages, unshaped_rewards
from compass.rl.zero_variance.expand import ExpandWeight, Ladder, ladder_sizes
from compass.rl.zero_variance.growth import Growth
from compass.types import Prompt, Rollout, RolloutGroup, Score

RATES = (0.01, 0.03, 0.1, 0.3, 0.5)
RATIO_LIMIT = 2.0
"""How many times less a p = 0.01 prompt must weigh under `base` than under `none`."""
PROMPT = Prompt(id="p", messages=())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py weights`."""

    json: bool = False
    """End with one line of JSON."""
    group_size: int = 8
    """Rollouts before any growth."""
    max_group_size: int = 32
    """The last rung; every rung is open."""


def run(argv: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Print weights beside those of p = 0.5; the figures when `--json` asks for them.

    `ratio` is how many times more a p = 0.01 prompt weighs, beside a p = 0.5 one, under `none` than
    under `base`.
    """
    cfg = parse(Config, argv, description=description)
    sizes = tuple(ladder_sizes(cfg.group_size, cfg.max_group_size)[1:])
    grown = Ladder(base=cfg.group_size, right=sizes, wrong=sizes)
    rows: list[tuple[str, Ladder, ExpandWeight]] = [
        ("no growth", Ladder(base=cfg.group_size), "none"),
        ("none", grown, "none"),
        ("base", grown, "base"),
        ("inverse", grown, "inverse"),
    ]
    weights = {
        (normalize, name): relative_weights(ladder, weight, AdvantageConfig(normalize=normalize))
        for normalize in ("std", "none")
        for name, ladder, weight in rows
    }
    table = Table(title="weight beside a p = 0.5 prompt")
    for title in ("advantage.normalize", "expand.weight", *(f"p = {p:g}" for p in RATES)):
        table.add_column(title)
    for (normalize, name), of_rates in weights.items():
        table.add_row(normalize, name, *(f"{w:.2f}" for w in of_rates))
    Console(highlight=False, width=100).print(table)
    if not cfg.json:
        return None
    return {
        "ratio": weights["std", "none"][0] / weights["std", "base"][0],
        "limit": RATIO_LIMIT,
        "rates": RATES,
        "weights": {f"{normalize}/{name}": w for (normalize, name), w in weights.items()},
    }


def relative_weights(ladder: Ladder, weight: ExpandWeight, cfg: AdvantageConfig) -> list[float]:
    """For each of `RATES`, E[sum over right answers of weight * A] / (p (1 - p)) over that of
    p = 0.5."""
    growth = Growth({PROMPT.id: ladder}, weight)

    def pull(verdicts: Sequence[float]) -> float:
        group = growth.weighed(_group(verdicts))
        (advantages,) = group_advantages([group], [unshaped_rewards(group)], cfg)
        pairs = zip(verdicts, advantages, strict=True)
        return group.weight * math.fsum(a for verdict, a in pairs if verdict)

    def expected(rate: float) -> float:
        terms = (chance * pull(verdicts) for chance, verdicts in outcomes(ladder, rate))
        return math.fsum(terms) / (rate * (1 - rate))

    even = expected(0.5)
    return [expected(rate) / even for rate in RATES]


def outcomes(ladder: Ladder, rate: float) -> Iterator[tuple[float, list[float]]]:
    """Probability and verdicts of a group's every end, by right answers on each rung."""
    unfinished: list[tuple[float, list[float], int]] = [(1.0, [], ladder.base)]
    while unfinished:
        chance, verdicts, size = unfinished.pop()
        more = size - len(verdicts)
        for right in range(more + 1):
            here = chance * math.comb(more, right) * rate**right * (1 - rate) ** (more - right)
            longer = verdicts + [1.0] * right + [0.0] * (more - right)
            larger = ladder.next_size(longer, size)
            if larger == size:
                yield here, longer
            else:
                unfinished.append((here, longer, larger))


def _group(verdicts: Sequence[float]) -> RolloutGroup:
    return RolloutGroup(
        prompt=PROMPT,
        rollouts=tuple(
            Rollout(
                prompt_id=PROMPT.id,
                sample=sample,
                num_prompt_tokens=1,
                num_completion_tokens=1,
                repetition=0.0,
                finish_reason="stop",
                policy_version=0,
                score=Score(
                    verdict=verdict,
                    reward=verdict,
                    valid=True,
                    reason="",
                    breakdown={},
                    seconds=0.0,
                ),
                holder=0,
                slot=sample,
            )
            for sample, verdict in enumerate(verdicts)
        ),
    )
