"""A domain's verifier and the user's own rewards, together one `Score`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from compass.errors import UserError
from compass.gym.reward import DOMAINS, broken, score
from compass.gym.rewards.call import (
    Given,
    NoRewardError,
    WholeGroup,
    call_group_reward,
    call_reward,
    style_of,
    takes_groups,
)
from compass.gym.rewards.config import RewardConfig, Rewards, is_replaced, named_domains
from compass.types import Prompt, Score

_G = TypeVar("_G")

LARGEST = 1e38
"""Of a reward: the difference of two is still a number in float32, which advantages are."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """`compass.gym.reward.score` with rewards of the user's own: what a worker verifies with."""

    rewards: Rewards
    right_above: float

    def __call__(
        self, prompt: Prompt, completion: str, finished: bool, thinking_open: bool = False
    ) -> Score:
        """The sum of what applies to one completion: the verifier's reward, unless it is replaced,
        and each value times its weight. Invalid where a function gave no reward, nothing applies,
        or the sum is above `LARGEST`. What looks at whole groups is left to `of_group`."""
        applying = applying_to(prompt.domain, self.rewards)
        own = {n: r for n, r in applying.items() if not takes_groups(r.fn)}
        verified = _is_verified(prompt.domain, applying)
        start = score(prompt, completion, finished, thinking_open) if verified else NOTHING_YET
        if not (own and start.valid):
            return start
        started = time.perf_counter()
        try:
            given = _asked(own, lambda fn: call_reward(fn, prompt, completion))
        except NoRewardError as error:
            return broken(str(error), time.perf_counter() - started)
        whole = self._add(start, prompt.domain, given, time.perf_counter() - started)
        return whole if len(own) < len(applying) else self._closed(whole, prompt.domain)

    def of_group(self, group: WholeGroup, scores: Sequence[Score]) -> list[Score]:
        """The scores of a group's completions, with what looks at the group as a whole added.

        `scores`: what `__call__` gave for each. Those that are invalid stay so, and where a
        function gave no rewards, all are.
        """
        domain = group.prompt.domain
        own = group_rewards(domain, self.rewards)
        started = time.perf_counter()
        try:
            given = _asked(own, lambda fn: call_group_reward(fn, group))
        except NoRewardError as error:
            seconds = (time.perf_counter() - started) / len(scores)
            return [broken(str(error), s.seconds + seconds) if s.valid else s for s in scores]
        seconds = (time.perf_counter() - started) / len(scores)
        added = []
        for i, one in enumerate(scores):
            of_one = {name: of_all[i] for name, of_all in given.items()}
            added.append(
                self._closed(self._add(one, domain, of_one, seconds), domain) if one.valid else one
            )
        return added

    def _add(self, start: Score, domain: str, given: Mapping[str, Given], seconds: float) -> Score:
        values = {name: g.value for name, g in given.items() if g.value is not None}
        total = sum(self.rewards[name].weight * value for name, value in values.items())
        reward = start.reward + total
        numbers = {f"{name}/{k}": v for name, g in given.items() for k, v in g.numbers.items()}
        breakdown = {**start.breakdown, **values, **numbers}
        return replace(
            start,
            verdict=self._verdict(start.verdict, domain, reward, breakdown),
            reward=reward,
            breakdown=breakdown,
            seconds=start.seconds + seconds,
        )

    def _verdict(
        self, verified: float, domain: str, reward: float, breakdown: Mapping[str, float]
    ) -> float:
        applying = applying_to(domain, self.rewards)
        judges = [name for name, r in applying.items() if r.verdict and name in breakdown]
        if judges:
            return float(breakdown[judges[0]] > self.right_above)
        return verified if _is_verified(domain, applying) else float(reward > self.right_above)

    def _closed(self, whole: Score, domain: str) -> Score:
        """The score once everything has been asked: invalid where nothing applies to it, or it is
        too large."""
        applying = applying_to(domain, self.rewards)
        if not _is_verified(domain, applying) and not whole.breakdown.keys() & applying.keys():
            return broken("no reward applies", whole.seconds)
        if not abs(whole.reward) <= LARGEST:
            return broken(f"the rewards sum to {whole.reward:g}, above {LARGEST:g}", whole.seconds)
        return whole


NOTHING_YET = Score(verdict=0.0, reward=0.0, valid=True, reason="", breakdown={}, seconds=0.0)
"""Where no verifier of ours has a say."""


def applying_to(domain: str, rewards: Rewards) -> Rewards:
    """Those that reward the domain."""
    return {name: reward for name, reward in rewards.items() if reward.applies_to(domain)}


def group_rewards(domain: str, rewards: Rewards) -> Rewards:
    """Those that reward the domain and are called with a whole group."""
    return {n: r for n, r in applying_to(domain, rewards).items() if takes_groups(r.fn)}


def _asked(own: Rewards, call: Callable[[str], _G]) -> dict[str, _G]:
    """What each function gave; an error says which reward it was."""
    given = {}
    for name, reward in own.items():
        try:
            given[name] = call(reward.fn)
        except NoRewardError as error:
            raise NoRewardError(f"reward {name}: {error}") from None
    return given


def _is_verified(domain: str, rewards: Rewards) -> bool:
    """Whether a verifier of ours has a say in the domain."""
    return domain in DOMAINS and not is_replaced(domain, rewards)


def check_rewards(rewards: Rewards) -> None:
    """Import every function and look at its parameters, before anything is spent.

    Raises:
        UserError: one does not import, is of no known style or is called as a domain is, nobody
            judges a domain, or two rewards give the verdict of one.
    """
    for name, reward in rewards.items():
        try:
            style_of(reward.fn)
        except UserError as error:
            raise UserError(f"gym.rewards.{name}: {error}") from None
    for domain in [*DOMAINS, *sorted(named_domains(rewards) - DOMAINS.keys())]:
        if domain in rewards:
            raise UserError(
                f"gym.rewards.{domain} is called as a domain is, and both would be logged as "
                f"reward/{domain}/mean; give it another name"
            )
        _check_judged(domain, applying_to(domain, rewards))


def _check_judged(domain: str, applying: Rewards) -> None:
    judges = [name for name, reward in applying.items() if reward.verdict]
    if len(judges) > 1:
        raise UserError(
            f"gym.rewards.{' and '.join(judges)} both give the verdict of {domain!r}; let one"
        )
    if (
        not _is_verified(domain, applying)
        and not judges
        and not any(r.weight for r in applying.values())
    ):
        raise UserError(
            f"gym.rewards.{' and '.join(applying)} only weigh 0 in {domain!r}, which no verifier "
            "judges: every reward would be 0; give one a weight"
        )


def own_reward(fn: str) -> dict[str, RewardConfig]:
    """One function alone, in place of any verifier."""
    return {"own": RewardConfig(fn=fn, replaces=True)}
