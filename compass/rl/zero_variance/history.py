"""Stage 1, the pre-filter: what each prompt did at its visits, and whether to draw it again.

The history is the same on every rank: decisions come from a hash, and outcomes of all ranks are
recorded in a fixed order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.rl.zero_variance.outcome import GroupOutcome, differ, tie_sign
from compass.rl.zero_variance.population import Evidence, Population
from compass.rows import read_rows

STEP_MEMORY = 0.8
"""Weight of all earlier steps beside a new one in `Prospects.useful_per_token`. Ours."""

BET_MEMORY = 0.95
"""Weight of all earlier steps beside a new one in what the gate learns from its bets. Ours."""

PRIOR_BETS = 4.0
"""Broken ties, as many as were expected, that count before the first bet. Ours."""


@dataclass(frozen=True, kw_only=True)
class PrefilterConfig:
    """Which prompts are not worth a rollout (docs/zero_variance.md; all constants are ours)."""

    enabled: bool = True
    """Skip prompts that recent visits showed flat. The history is kept either way."""
    evaluation: Path | None = None
    """Samples (`*.samples.jsonl`) that recipes/evaluate.py wrote for these prompts before training:
    they count as each prompt's first visit."""
    flat_visits: int = 2
    """Flat visits in a row, of one sign, after which a prompt is skipped at times."""
    decay: float = 0.25
    """Factor on the probability of a visit for each flat visit from then on."""
    floor: float = 0.05
    """Least probability of a visit: the policy changes, and with it what is flat."""
    memory: float = 0.5
    """Weight of all earlier evidence on a prompt's pass rate beside that of a new visit; 1 never
    forgets, which is right for a policy that does not change."""

    def __post_init__(self) -> None:
        if self.flat_visits < 1:
            raise UserError(f"prefilter.flat_visits={self.flat_visits} must be at least 1")
        for name in ("decay", "floor", "memory"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"prefilter.{name}={getattr(self, name)} must be above 0 and at most 1"
                )


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """What is known of one prompt. Built by `PromptHistory`."""

    draws: int = 0
    """Times the sampler offered it; each gives a decision of its own."""
    skips: int = 0
    """Draws on which the decision was to skip it."""
    visits: int = 0
    rollouts: int = 0
    """With a verdict, over all visits."""
    passes: float = 0.0
    """Sum of their verdicts."""
    recent_passes: float = 0.0
    """As `passes`, the last visit in full and earlier ones weighing less
    (`PrefilterConfig.memory`)."""
    recent_failures: float = 0.0
    impossible: float = 0.0
    """Probability that it is an impossible prompt (`Population.kinds`), as of its last visit."""
    trivial: float = 0.0
    """The same for a trivial one."""
    streak: int = 0
    """Flat visits in a row, of one sign; negative when all wrong."""
    saved_by: Mapping[str, int] = field(default_factory=dict)
    """How many visits ended with each `SavedBy`."""

    @property
    def recent_pass_rate(self) -> float | None:
        """Mean verdict as of the last visit, earlier ones weighing less; None without a verdict."""
        evidence = self.recent_passes + self.recent_failures
        return self.recent_passes / evidence if evidence else None


_NEVER_MET = PromptRecord()


@dataclass(frozen=True, kw_only=True)
class Prospects:
    """What the gate of stage 2 compares with. Built by `PromptHistory`."""

    population: Population
    useful_per_token: float
    """Groups that were not flat at base size, per token spent on base rollouts: of late, or over
    the whole run if that was more. It is what tokens buy when spent on the next prompt that passes
    the pre-filter; where fresh prompts get barren, growing is not let pay more than they ever cost.
    """
    luck_right: float = 1.0
    """Ties of right answers that were broken of late, over those that were expected to break."""
    luck_wrong: float = 1.0
    """The same for ties of wrong answers."""

    def break_probability(self, evidence: Evidence, *, right: bool, num_rollouts: int) -> float:
        """That of the population (`Population.break_probability`), as the gate's own bets have
        corrected it."""
        chance = self.population.break_probability(evidence, right=right, num_rollouts=num_rollouts)
        return min(1.0, chance * (self.luck_right if right else self.luck_wrong))


@dataclass(kw_only=True)
class _Bets:
    """What came of letting groups grow, earlier steps weighing less."""

    expected: float = 0.0
    """Ties that should have been broken, by the population alone."""
    broken: float = 0.0

    @property
    def luck(self) -> float:
        return (PRIOR_BETS + self.broken) / (PRIOR_BETS + self.expected)

    def fade(self) -> None:
        self.expected *= BET_MEMORY
        self.broken *= BET_MEMORY


class PromptHistory:
    """Every prompt's visits; decides which prompts to skip.

    Args:
        cfg: thresholds.
        seed: of the decisions.
    """

    def __init__(self, cfg: PrefilterConfig, *, seed: int) -> None:
        self._cfg = cfg
        self._seed = seed
        self._records: dict[str, PromptRecord] = {}
        self._impossible = 0.0
        self._trivial = 0.0
        self._num_visited = 0
        self._recent_useful = self._recent_tokens = 0.0
        self._total_useful = self._total_tokens = 0
        self._bets = {1: _Bets(), -1: _Bets()}
        """On ties of right and of wrong answers."""

    def __getitem__(self, prompt_id: str) -> PromptRecord:
        """The prompt's record; an empty one when it was never met."""
        return self._records.get(prompt_id, _NEVER_MET)

    def keep_probability(self, prompt_id: str) -> float:
        """How likely the prompt is rolled out when drawn: 1 up to `flat_visits - 1` flat visits in
        a row, then falling geometrically to `floor`."""
        beyond = abs(self[prompt_id].streak) - self._cfg.flat_visits + 1
        if not self._cfg.enabled or beyond <= 0:
            return 1.0
        return max(self._cfg.floor, self._cfg.decay**beyond)

    def admit(self, prompt_id: str) -> bool:
        """Decide on one draw of the prompt, and count it. The same on every rank and after a
        resume: the decision is a hash of seed, prompt and number of the draw."""
        record = self[prompt_id]
        admitted = _uniform(self._seed, prompt_id, record.draws) < self.keep_probability(prompt_id)
        self._records[prompt_id] = replace(
            record, draws=record.draws + 1, skips=record.skips + (not admitted)
        )
        return admitted

    def record(self, outcome: GroupOutcome) -> None:
        """Add one visit.

        A visit with fewer than two valid verdicts says nothing about flatness: the streak stays.
        """
        record, verdicts = self[outcome.prompt_id], outcome.verdicts
        passes, memory = sum(verdicts), self._cfg.memory if verdicts else 1.0
        recent_passes = memory * record.recent_passes + passes
        recent_failures = memory * record.recent_failures + len(verdicts) - passes
        impossible, trivial, _ = self.population.kinds((recent_passes, recent_failures))
        self._impossible += impossible - record.impossible
        self._trivial += trivial - record.trivial
        self._num_visited += record.visits == 0
        saved_by = dict(record.saved_by)
        saved_by[outcome.saved_by] = saved_by.get(outcome.saved_by, 0) + 1
        self._records[outcome.prompt_id] = replace(
            record,
            visits=record.visits + 1,
            rollouts=record.rollouts + len(verdicts),
            passes=record.passes + passes,
            recent_passes=recent_passes,
            recent_failures=recent_failures,
            impossible=impossible,
            trivial=trivial,
            streak=_next_streak(record.streak, verdicts),
            saved_by=saved_by,
        )

    def merge(self, by_rank: Iterable[Iterable[GroupOutcome]]) -> None:
        """Add one step's visits of all ranks, as gathered: the same whatever rank had which."""
        outcomes = sorted((o for of_rank in by_rank for o in of_rank), key=lambda o: o.prompt_id)
        self._settle_bets(outcomes)
        for outcome in outcomes:
            self.record(outcome)
        useful = sum(o.saved_by == "base" for o in outcomes)
        tokens = sum(o.base_tokens for o in outcomes)
        self._recent_useful = STEP_MEMORY * self._recent_useful + useful
        self._recent_tokens = STEP_MEMORY * self._recent_tokens + tokens
        self._total_useful += useful
        self._total_tokens += tokens

    def _settle_bets(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Compare what growing was expected to do with what it did. Groups with a broken verifier
        take no part: which of their rollouts came when is not recorded."""
        population = self.population
        for bets in self._bets.values():
            bets.fade()
        for outcome in outcomes:
            size, total = outcome.base_rollouts, len(outcome.verdicts)
            if total != size + outcome.expand_rollouts:
                continue
            passes, failures = self.evidence(outcome.prompt_id)
            while size < total:
                larger, sign = min(2 * size, total), tie_sign(outcome.verdicts[:size])
                tied = (passes + size, failures) if sign > 0 else (passes, failures + size)
                self._bets[sign].expected += population.break_probability(
                    tied, right=sign > 0, num_rollouts=larger - size
                )
                self._bets[sign].broken += differ(outcome.verdicts[:larger])
                size = larger

    @property
    def population(self) -> Population:
        """The prior over prompts."""
        return Population.fitted(
            impossible=self._impossible, trivial=self._trivial, num_prompts=self._num_visited
        )

    def evidence(self, prompt_id: str) -> Evidence:
        """Passes and failures of earlier visits as they weigh beside a new one: the last has faded
        by then too."""
        record, memory = self[prompt_id], self._cfg.memory
        return memory * record.recent_passes, memory * record.recent_failures

    def posterior(self, prompt_id: str) -> tuple[float, float]:
        """(a, b) of the Beta posterior of the pass rate as of the last visit, from Beta(1, 1)."""
        record = self[prompt_id]
        return 1 + record.recent_passes, 1 + record.recent_failures

    def prospects(self) -> Prospects | None:
        """What the next prompt promises; None before the first step is merged."""
        if not self._recent_tokens:
            return None
        return Prospects(
            population=self.population,
            useful_per_token=max(
                self._recent_useful / self._recent_tokens, self._total_useful / self._total_tokens
            ),
            luck_right=self._bets[1].luck,
            luck_wrong=self._bets[-1].luck,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """One JSON object per prompt met, in order of id: what `history.jsonl` holds."""
        for prompt_id in sorted(self._records):
            record = self._records[prompt_id]
            yield {
                "id": prompt_id,
                "visits": record.visits,
                "skips": record.skips,
                "rollouts": record.rollouts,
                "pass_rate": record.passes / record.rollouts if record.rollouts else None,
                "recent_pass_rate": record.recent_pass_rate,
                "streak": record.streak,
                "keep_probability": self.keep_probability(prompt_id),
                "saved_by": dict(record.saved_by),
            }

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; JSON values."""
        return {
            "records": {prompt_id: asdict(record) for prompt_id, record in self._records.items()},
            "impossible": self._impossible,
            "trivial": self._trivial,
            "num_visited": self._num_visited,
            "recent_useful": self._recent_useful,
            "recent_tokens": self._recent_tokens,
            "total_useful": self._total_useful,
            "total_tokens": self._total_tokens,
            "bets": {str(sign): asdict(bets) for sign, bets in self._bets.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._records = {key: PromptRecord(**value) for key, value in state["records"].items()}
        self._impossible = state["impossible"]
        self._trivial = state["trivial"]
        self._num_visited = state["num_visited"]
        self._recent_useful = state["recent_useful"]
        self._recent_tokens = state["recent_tokens"]
        self._total_useful = state["total_useful"]
        self._total_tokens = state["total_tokens"]
        self._bets = {int(sign): _Bets(**bets) for sign, bets in state["bets"].items()}


def evaluation_outcomes(path: Path) -> list[GroupOutcome]:
    """One visit per prompt from the samples that `recipes/evaluate.py` wrote, for
    `PromptHistory.record`: a history before the first rollout.

    Raises:
        UserError: a line without `id`, `verdict` or `num_tokens`, with file and line number.
    """
    verdicts: dict[str, list[float]] = {}
    lengths: dict[str, list[int]] = {}
    for where, row in read_rows(path):
        prompt_id, verdict, num_tokens = _sample(where, row)
        lengths.setdefault(prompt_id, []).append(num_tokens)
        verdicts.setdefault(prompt_id, [])
        if verdict is not None:
            verdicts[prompt_id].append(verdict)
    return [
        GroupOutcome(
            prompt_id=prompt_id,
            verdicts=tuple(verdicts[prompt_id]),
            base_rollouts=len(lengths[prompt_id]),
            base_tokens=sum(lengths[prompt_id]),
            expand_rollouts=0,
            expand_tokens=0,
            is_flat=not differ(verdicts[prompt_id]),
            saved_by="base" if differ(verdicts[prompt_id]) else "none",
        )
        for prompt_id in lengths
    ]


def _sample(where: str, row: Mapping[str, Any]) -> tuple[str, float | None, int]:
    prompt_id, verdict, num_tokens = row.get("id"), row.get("verdict", ""), row.get("num_tokens")
    fits = (
        isinstance(prompt_id, str)
        and (verdict is None or isinstance(verdict, int | float))
        and isinstance(num_tokens, int)
    )
    if not fits:
        raise UserError(
            f"{where}: id={prompt_id!r}, verdict={verdict!r}, num_tokens={num_tokens!r} is not a "
            "sample of an evaluation; give the samples.jsonl that recipes/evaluate.py wrote"
        )
    return prompt_id, verdict, num_tokens  # type: ignore[return-value]


def _next_streak(streak: int, verdicts: Sequence[float]) -> int:
    if len(verdicts) < 2:
        return streak
    sign = tie_sign(verdicts)
    return streak + sign if sign * streak > 0 else sign


def _uniform(seed: int, prompt_id: str, draw: int) -> float:
    """In [0, 1), from a hash; Python's own differs from process to process."""
    digest = hashlib.blake2b(f"{seed}/{draw}/{prompt_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
