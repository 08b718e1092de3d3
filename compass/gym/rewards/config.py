"""Which functions of the user's own reward which domains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One function, a table `[gym.rewards.NAME]`; docs/gym.md has examples."""

    fn: str
    """`path/file.py:function`. Its parameters' names say what it is called with: `completions` as
    TRL does (lists, over the whole group), `solution_str` as verl does, `completion` plainly."""
    weight: float = 1.0
    """Of its value in the reward; 0 makes it a metric only."""
    domains: tuple[str, ...] | None = None
    """Domains that it rewards, those of the user's own among them; None: all."""
    replaces: bool = False
    """It takes the place of the domain's verifier instead of standing beside it."""
    verdict: bool = False
    """It gives the verdict too: right is a value above `gym.right_above`. Without one, the verdict
    is the verifier's, or where that is replaced, right is a reward above it."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"gym.rewards: weight={self.weight} must be a finite number")
        if self.domains == ():
            raise UserError("gym.rewards: domains=[] rewards nothing; name some, or leave it out")

    def applies_to(self, domain: str) -> bool:
        """Whether it rewards prompts of `domain`."""
        return self.domains is None or domain in self.domains


Rewards = Mapping[str, RewardConfig]
"""By the name that they are logged under."""


def named_domains(rewards: Rewards) -> frozenset[str]:
    """Every domain that a reward names: these need no verifier."""
    return frozenset(domain for reward in rewards.values() for domain in reward.domains or ())


def is_replaced(domain: str, rewards: Rewards) -> bool:
    """Whether the domain's verifier, if there is one, has no say."""
    return any(r.replaces and r.applies_to(domain) for r in rewards.values())
