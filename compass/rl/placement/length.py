"""How long a prompt's completions will be, from how long they were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from statistics import NormalDist
from typing import Any

MEMORY = 0.5
"""Weight of all earlier evidence beside a new visit: lengths drift as the policy changes. Ours."""

PRIOR_ROLLOUTS = 16.0
"""Rollouts that the spread usual in a domain counts for, beside a prompt's own. Ours."""

FLOOR = 1e-6
"""Least variance of log lengths: completions of one length do not prove that all have it."""


@dataclass(frozen=True, kw_only=True)
class GroupLengths:
    """Completion lengths of one group. Built by `compass.rl.placement.schedule`; JSON values only,
    so that ranks can exchange it."""

    prompt_id: str
    domain: str
    num_tokens: tuple[int, ...]
    """Of each rollout, in order."""


@dataclass(frozen=True, kw_only=True)
class _LogLengths:
    """Sums over log lengths, earlier ones weighing less: lengths are long-tailed, their logs are
    nearly normal."""

    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    deviations: float = 0.0
    """Squares of what is left when each group's own mean is taken away."""
    freedom: float = 0.0
    """Rollouts less one for each group: what `deviations` are to be divided by."""

    def followed_by(self, groups: Sequence[Sequence[int]]) -> _LogLengths:
        sums = [MEMORY * x for x in astuple(self)]
        for lengths in groups:
            logs = [math.log(max(1, length)) for length in lengths]
            mean = math.fsum(logs) / len(logs)
            of_group = (
                float(len(logs)),
                math.fsum(logs),
                math.fsum(x * x for x in logs),
                math.fsum((x - mean) ** 2 for x in logs),
                len(logs) - 1.0,
            )
            sums = [x + y for x, y in zip(sums, of_group, strict=True)]
        return _LogLengths(**dict(zip(_LogLengths.__dataclass_fields__, sums, strict=True)))

    @property
    def mean(self) -> float:
        return self.total / self.weight

    @property
    def variance(self) -> float:
        return max(FLOOR, self.squares / self.weight - self.mean**2)

    @property
    def within(self) -> float:
        """Variance among rollouts of one prompt."""
        return max(FLOOR, self.deviations / self.freedom) if self.freedom else self.variance


@dataclass(kw_only=True)
class LengthHistory:
    """What was written for each prompt and in each domain. The same on every rank.

    A prompt never met is predicted from its domain, in a domain never met from everything; before
    anything was written there is no prediction. Of a prompt that was met, few rollouts are known,
    and what they say is weighed against what is usual in the domain: the mean as in a normal model
    of prompts within a domain and of rollouts within a prompt (empirical Bayes), the spread by
    counting the usual one as `PRIOR_ROLLOUTS` more.
    """

    prompts: dict[str, _LogLengths] = field(default_factory=dict)
    domains: dict[str, _LogLengths] = field(default_factory=dict)
    everything: _LogLengths = field(default_factory=_LogLengths)

    def predict(self, prompt_id: str, domain: str, *, quantile: float) -> float | None:
        """A quantile of the completion tokens of one sample, by a log-normal law."""
        usual = self.domains.get(domain) or self.everything
        if not usual.weight:
            return None
        mean, variance = self._law(prompt_id, usual)
        return math.exp(mean + NormalDist().inv_cdf(quantile) * math.sqrt(variance))

    def _law(self, prompt_id: str, usual: _LogLengths) -> tuple[float, float]:
        """Mean and variance of the log length of one sample."""
        known = self.prompts.get(prompt_id)
        if known is None:
            return usual.mean, usual.variance
        within = known.weight * known.variance + PRIOR_ROLLOUTS * usual.within
        within /= known.weight + PRIOR_ROLLOUTS
        between = max(FLOOR, usual.variance - usual.within)
        trust = known.weight * between / (known.weight * between + usual.within)
        mean = usual.mean + trust * (known.mean - usual.mean)
        return mean, within + (1 - trust) * between

    def mean(self, prompt_id: str, domain: str) -> float | None:
        """The mean of the completion tokens of one sample, by the same law."""
        usual = self.domains.get(domain) or self.everything
        if not usual.weight:
            return None
        mean, variance = self._law(prompt_id, usual)
        return math.exp(mean + variance / 2)

    def merge(self, by_rank: Iterable[Iterable[GroupLengths]]) -> None:
        """Add one step's groups of all ranks, as gathered: the same whatever rank had which."""
        groups = sorted(
            (group for of_rank in by_rank for group in of_rank),
            key=lambda group: (group.prompt_id, group.num_tokens),
        )
        of_domains: dict[str, list[tuple[int, ...]]] = {}
        for group in groups:
            self.prompts[group.prompt_id] = self.prompts.get(
                group.prompt_id, _LogLengths()
            ).followed_by([group.num_tokens])
            of_domains.setdefault(group.domain, []).append(group.num_tokens)
        for domain, lengths in of_domains.items():
            self.domains[domain] = self.domains.get(domain, _LogLengths()).followed_by(lengths)
        self.everything = self.everything.followed_by([group.num_tokens for group in groups])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; JSON values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.prompts = {key: _LogLengths(**value) for key, value in state["prompts"].items()}
        self.domains = {key: _LogLengths(**value) for key, value in state["domains"].items()}
        self.everything = _LogLengths(**state["everything"])
