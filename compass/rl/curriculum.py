"""The curriculum: stages of rising difficulty with growing length limits.

Compass-Thinker-7B (arXiv 2508.08909) trains in stages on ever harder problems; the bands by pass
rate are our reading. A prompt belongs to a stage when its pass rate lies in the stage's band, or
when nothing is known of it yet. Pass rates are those of late, in which earlier visits fade, so that
what was failed once and is solved now moves on. They are read when a stage begins and hold until
it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compass.errors import UserError
from compass.types import Prompt

PassRate = Callable[[str], float | None]
"""Prompt id to its pass rate of late; None when nothing is known of it."""


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Stages of training. Every list has one entry per stage."""

    enabled: bool = False
    """Off: all prompts at every step."""
    bands: tuple[tuple[float, float], ...] = ((0.3, 0.9), (0.1, 0.7), (0.0, 0.4))
    """Least and greatest pass rate of each stage's prompts. Our choice of numbers."""
    num_steps: tuple[int, ...] = ()
    """Steps of each stage; the last stage goes on to the end. Empty: equal parts of the run."""
    max_completion_tokens: tuple[int, ...] = ()
    """Longest completion in each stage. Empty: the run's own in every stage."""

    def __post_init__(self) -> None:
        if not self.bands:
            raise UserError("curriculum.bands is empty; give a band for each stage")
        for low, high in self.bands:
            if not 0 <= low <= high <= 1:
                raise UserError(
                    f"curriculum.bands has ({low}, {high}); a band is two pass rates from 0 to 1, "
                    "the smaller first"
                )
        for name in ("num_steps", "max_completion_tokens"):
            values = getattr(self, name)
            if values and len(values) != len(self.bands):
                raise UserError(
                    f"curriculum.{name} has {len(values)} entries, curriculum.bands "
                    f"{len(self.bands)}; give one for each stage, or none"
                )
            if any(value < 1 for value in values):
                raise UserError(f"curriculum.{name}={values}: each must be at least 1")

    def completion_limits(self, of_run: int) -> tuple[int, ...]:
        """The longest completion of the run, then of each stage that has a limit of its own."""
        return (of_run, *self.max_completion_tokens) if self.enabled else (of_run,)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run. Built by `stages_of`."""

    low: float
    high: float
    first_step: int
    """Counted from 1."""
    max_completion_tokens: int


def stages_of(
    cfg: CurriculumConfig, *, num_steps: int, max_completion_tokens: int
) -> tuple[Stage, ...]:
    """The stages of a run of `num_steps`; one stage that takes every prompt when off."""
    if not cfg.enabled:
        everything = Stage(
            low=0.0, high=1.0, first_step=1, max_completion_tokens=max_completion_tokens
        )
        return (everything,)
    num_stages = len(cfg.bands)
    ends = [num_steps * (i + 1) // num_stages for i in range(num_stages)]
    if cfg.num_steps:
        ends = [sum(cfg.num_steps[: i + 1]) for i in range(num_stages)]
    limits = cfg.max_completion_tokens or (max_completion_tokens,) * num_stages
    return tuple(
        Stage(low=low, high=high, first_step=after + 1, max_completion_tokens=limit)
        for (low, high), after, limit in zip(cfg.bands, [0, *ends], limits, strict=False)
    )


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Index of the stage that `step` (from 1) belongs to."""
    return max(i for i, stage in enumerate(stages) if stage.first_step <= step)


def eligible(
    prompts: Sequence[Prompt], stage: Stage, pass_rate: PassRate, *, at_least: int
) -> tuple[list[int], float]:
    """Indices of the stage's prompts, in order, and by how much the band had to be widened.

    A band with fewer than `at_least` prompts grows at both ends by the least amount that fills it;
    the prompts themselves must be that many.
    """
    distances = [_distance(stage, pass_rate(prompt.id)) for prompt in prompts]
    widened = sorted(distances)[at_least - 1]
    return [i for i, distance in enumerate(distances) if distance <= widened], widened


def _distance(stage: Stage, rate: float | None) -> float:
    """How far a pass rate lies outside the band; 0 inside, and where there is none."""
    if rate is None:
        return 0.0
    return max(0.0, stage.low - rate, rate - stage.high)
