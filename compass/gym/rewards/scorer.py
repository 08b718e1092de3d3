"""A domain's verifier and the user's own rewards, together one `Score`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from compass.errors import UserError
from compass.gym.reward import DOMAINS, broken, score
from compass.gym.rewards.call import Given, NoRewardError, call_reward, style_of
from compass.gym.rewards.config import RewardConfig, Rewards, is_replaced, named_domains
from compass.types import Prompt, Score

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
        """The sum of what applies: the verifier's reward, unless it is replaced, and each value
        times its weight. Invalid where a function gave no reward, nothing applies, or the sum is
        above `LARGEST`."""
        own = {n: r for n, r in self.rewards.items() if r.applies_to(prompt.domain)}
        verified = _is_verified(prompt.domain, own)
        base = score(prompt, completion, finished, thinking_open) if verified else None
        if base is not None and not (own and base.valid):
            return base
        started = time.perf_counter()
        given: dict[str, Given] = {}
        for name, reward in own.items():
            try:
                given[name] = call_reward(reward.fn, prompt, completion)
            except NoRewardError as error:
                return broken(f"reward {name}: {error}", time.perf_counter() - started)
        if base is None and all(g.value is None for g in given.values()):
            return broken("no reward applies", time.perf_counter() - started)
        whole = self._together(base, own, given, time.perf_counter() - started)
        if not abs(whole.reward) <= LARGEST:
            return broken(f"the rewards sum to {whole.reward:g}, above {LARGEST:g}", whole.seconds)
        return whole

    def _together(
        self, base: Score | None, own: Rewards, given: Mapping[str, Given], seconds: float
    ) -> Score:
        values = {name: g.value for name, g in given.items() if g.value is not None}
        total = sum(own[name].weight * value for name, value in values.items())
        start = base or Score(
            verdict=0.0, reward=0.0, valid=True, reason="", breakdown={}, seconds=0.0
        )
        reward = start.reward + total
        verdict = float(reward > self.right_above) if base is None else base.verdict
        for name, value in values.items():
            if own[name].verdict:
                verdict = float(value > self.right_above)
        numbers = {f"{name}/{k}": v for name, g in given.items() for k, v in g.numbers.items()}
        return replace(
            start,
            verdict=verdict,
            reward=reward,
            breakdown={**start.breakdown, **values, **numbers},
            seconds=start.seconds + seconds,
        )


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
        _check_judged(domain, {n: r for n, r in rewards.items() if r.applies_to(domain)})


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
