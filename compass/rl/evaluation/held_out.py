"""Held-out sets that a run is evaluated on as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compass.rl.evaluation.config import EvalConfig
from compass.rl.evaluation.evaluate import eval_metrics, evaluate
from compass.rl.writer import RolloutWriter
from compass.types import Prompt


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A set with its prompts. Built by `compass.rl.parts`."""

    config: EvalConfig
    prompts: list[Prompt]


def examine(writer: RolloutWriter, sets: Mapping[str, HeldOut], *, seed: int) -> dict[str, float]:
    """`eval/NAME/*` of every set. Collective."""
    metrics: dict[str, float] = {}
    for name, held_out in sets.items():
        config, sampling = held_out.config, writer.sampling
        if config.temperature is not None:
            sampling = replace(sampling, temperature=config.temperature)
        if config.max_completion_tokens is not None:
            sampling = replace(sampling, max_completion_tokens=config.max_completion_tokens)
        samples = evaluate(
            writer, held_out.prompts, sampling, num_samples=config.num_samples, seed=seed
        )
        metrics |= eval_metrics(name, samples)
    return metrics
