"""What the simulated generators are asked to write: scenarios, and lengths drawn from them.

Every random number is drawn here, from (scenario, seed) alone, so that all policies meet the same
work (common random numbers).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compass.errors import UserError
from compass.rl.placement.length import GroupLengths, LengthHistory
from compass.rl.placement.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One step of RL on many replicas."""

    name: str
    max_tokens: int
    """Longest completion."""
    sigma: float
    """Standard deviation of log length over all completions."""
    num_slots: int
    """Completions decoded at once on a replica."""
    num_replicas: int
    num_prompts: int
    group_size: int


SCENARIOS = tuple(
    Scenario(
        name=name,
        max_tokens=max_tokens * 1024,
        sigma=sigma,
        num_slots=num_slots,
        num_replicas=8,
        num_prompts=512,
        group_size=16,
    )
    for name, max_tokens, sigma, num_slots in (
        ("8k-narrow", 8, 0.8, 64),
        ("8k-wide", 8, 1.3, 128),
        ("16k-middle", 16, 1.0, 128),
        ("32k-middle", 32, 1.0, 256),
        ("32k-wide", 32, 1.3, 64),
        ("64k-narrow", 64, 0.8, 256),
    )
)
"""Three sizes each of limit, spread and batch, in settings that lie apart. The step is that of
DAPO (arXiv 2503.14476), 512 prompts x 16, on 64 GPUs as 8 replicas: 1,024 completions for each."""


@dataclass(frozen=True, kw_only=True)
class LengthLaw:
    """How lengths vary, and what is known of them beforehand. All assumptions."""

    prompt_share: float = 0.6
    """Share of the variance of log length that the prompt explains; the rest is sampling."""
    domain_share: float = 0.3
    """Share of the prompt's part that its domain explains."""
    num_domains: int = 6
    """Domains; each prompt belongs to one."""
    truncated_share: float = 0.02
    """Share of completions that reach `max_tokens`: it sets the median."""
    seen_share: float = 0.8
    """Share of prompts that earlier steps visited, one to `max_visits` times."""
    max_visits: int = 3
    """Earlier visits of a prompt, at most."""
    drift: float = 0.15
    """Standard deviation of a prompt's mean log length from one visit to the next, because the
    policy changed."""
    prompt_median: int = 256
    """Tokens of a prompt, lognormal with sigma 0.5."""

    def __post_init__(self) -> None:
        for name in ("prompt_share", "domain_share", "seen_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"lengths.{name}={getattr(self, name)} must be from 0 to 1")
        if not 0 < self.truncated_share < 1:
            raise UserError(
                f"lengths.truncated_share={self.truncated_share} must be above 0 and below 1"
            )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step's completions. Built by `draw_workload`. Shapes: P prompts, G group size."""

    scenario: Scenario
    lengths: np.ndarray
    """[P, G] completion tokens."""
    prompt_tokens: np.ndarray
    """[P]"""
    predicted: np.ndarray
    """[P] completion tokens that `LengthHistory` predicts at the schedule's quantile."""
    order: np.ndarray
    """[P] a random order of prompts, for policies that know nothing."""
    verifier_noise: np.ndarray
    """[P, G] standard normal: log seconds of each verifier, before scale and location."""


def draw_workload(scenario: Scenario, law: LengthLaw, seed: int) -> Workload:
    """The workload of (scenario, law, seed), always the same."""
    draw = np.random.default_rng([zlib.crc32(scenario.name.encode()), seed])
    P, G, sigma = scenario.num_prompts, scenario.group_size, scenario.sigma
    domains = draw.integers(law.num_domains, size=P)
    domain_part = draw.standard_normal(law.num_domains)[domains]
    prompt_part = law.domain_share**0.5 * domain_part + (
        1 - law.domain_share
    ) ** 0.5 * draw.standard_normal(P)
    z = NormalDist().inv_cdf(1 - law.truncated_share)
    mean_log = np.log(scenario.max_tokens) - sigma * z + sigma * law.prompt_share**0.5 * prompt_part
    spread = sigma * (1 - law.prompt_share) ** 0.5

    def completions(mean_log: np.ndarray) -> np.ndarray:
        logs = mean_log[:, None] + spread * draw.standard_normal((P, G))
        return np.exp(logs).astype(int).clip(1, scenario.max_tokens)

    lengths = completions(mean_log)
    order = draw.permutation(P)
    prompt_tokens = np.exp(0.5 * draw.standard_normal(P)) * law.prompt_median
    verifier_noise = draw.standard_normal((P, G))
    num_visits = draw.integers(1, law.max_visits + 1, size=P) * (draw.random(P) < law.seen_share)
    history = LengthHistory()
    for visit in range(law.max_visits):
        earlier = completions(mean_log + law.drift * draw.standard_normal(P))
        history.merge([_groups(earlier, domains, np.flatnonzero(num_visits > visit))])
    return Workload(
        scenario=scenario,
        lengths=lengths,
        prompt_tokens=prompt_tokens.astype(int).clip(1),
        predicted=_predictions(history, domains, scenario.max_tokens),
        order=order,
        verifier_noise=verifier_noise,
    )


def _groups(lengths: np.ndarray, domains: np.ndarray, visited: np.ndarray) -> list[GroupLengths]:
    return [
        GroupLengths(
            prompt_id=f"{p}", domain=f"{domains[p]}", num_tokens=tuple(lengths[p].tolist())
        )
        for p in visited
    ]


def _predictions(history: LengthHistory, domains: np.ndarray, max_tokens: int) -> np.ndarray:
    """As `compass.rl.placement.schedule` makes them."""
    quantile = ScheduleConfig().quantile
    predicted = (
        history.predict(f"{p}", f"{domain}", quantile=quantile) for p, domain in enumerate(domains)
    )
    return np.array([min(max_tokens, max_tokens if x is None else x) for x in predicted])
