"""How long a prompt's completions will be, from how long they were (METHOD 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

MEMORY = 0.5
"""Weight of all earlier evidence beside a new visit: lengths drift as the policy changes. Ours."""


@dataclass(frozen=True, kw_only=True)
class GroupLengths:
    """Completion lengths of one group. Built by `compass.rl.schedule`; JSON values only, so that
    ranks can exchange it."""

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

    def followed_by(self, lengths: Sequence[int]) -> _LogLengths:
        logs = [math.log(max(1, length)) for length in lengths]
        return _LogLengths(
            weight=MEMORY * self.weight + len(logs),
            total=MEMORY * self.total + math.fsum(logs),
            squares=MEMORY * self.squares + math.fsum(x * x for x in logs),
        )

    def quantile(self, z: float) -> float:
        mean = self.total / self.weight
        variance = max(0.0, self.squares / self.weight - mean**2)
        return math.exp(mean + z * math.sqrt(variance))


@dataclass(kw_only=True)
class LengthHistory:
    """What was written for each prompt and in each domain. The same on every rank.

    A prompt is predicted from its own visits; one never met from its domain; in a domain never met
    from everything; before anything was written there is no prediction.
    """

    prompts: dict[str, _LogLengths] = field(default_factory=dict)
    domains: dict[str, _LogLengths] = field(default_factory=dict)
    everything: _LogLengths = field(default_factory=_LogLengths)

    def predict(self, prompt_id: str, domain: str, *, quantile: float) -> float | None:
        """A quantile of the completion tokens of one sample, by a log-normal law."""
        known = self.prompts.get(prompt_id) or self.domains.get(domain) or self.everything
        return known.quantile(NormalDist().inv_cdf(quantile)) if known.weight else None

    def merge(self, by_rank: Iterable[Iterable[GroupLengths]]) -> None:
        """Add one step's groups of all ranks, as gathered: the same whatever rank had which."""
        groups = sorted(
            (group for of_rank in by_rank for group in of_rank),
            key=lambda group: (group.prompt_id, group.num_tokens),
        )
        of_domains: dict[str, list[int]] = {}
        for group in groups:
            self.prompts[group.prompt_id] = self.prompts.get(
                group.prompt_id, _LogLengths()
            ).followed_by(group.num_tokens)
            of_domains.setdefault(group.domain, []).extend(group.num_tokens)
        for domain, lengths in of_domains.items():
            self.domains[domain] = self.domains.get(domain, _LogLengths()).followed_by(lengths)
        self.everything = self.everything.followed_by(
            [length for group in groups for length in group.num_tokens]
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; JSON values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.prompts = {key: _LogLengths(**value) for key, value in state["prompts"].items()}
        self.domains = {key: _LogLengths(**value) for key, value in state["domains"].items()}
        self.everything = _LogLengths(**state["everything"])
