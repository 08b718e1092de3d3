"""Evaluation: generate and score every prompt of a set, and sum up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compass.metrics import Stopwatch
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.schedule import RolloutSchedule, ScheduleConfig
from compass.rl.rollout import rollout
from compass.rl.writer import RolloutWriter
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class EvaluationSample:
    """One scored completion of an evaluation. Built by `evaluate`; JSON values only."""

    id: str
    sample: int
    text: str
    num_tokens: int
    finish_reason: str
    verdict: float | None
    """None when the verifier failed."""
    reason: str
    difficulty: float | None
    breakdown: dict[str, float]


def evaluate(
    writer: RolloutWriter,
    prompts: Sequence[Prompt],
    *,
    num_samples: int,
    seed: int,
) -> list[EvaluationSample]:
    """`num_samples` scored completions of every prompt, on every rank, in the prompts' order.

    Collective: whole prompts are shared among ranks and the samples gathered.
    """
    topology = writer.topology
    schedule = RolloutSchedule(
        ScheduleConfig(balance="off"),
        topology,
        max_completion_tokens=writer.sampling.max_completion_tokens,
    )
    written = RankRollouts(topology.rank)
    groups = rollout(
        writer,
        prompts,
        share=schedule.share,
        group_size=num_samples,
        seed=seed,
        written=written,
        stopwatch=Stopwatch(),
    )
    mine = [_samples(group, written, writer.tokenizer) for group in groups]
    # Homes are dealt like cards.
    by_rank = topology.all_gather_object(mine)
    return [
        sample
        for i in range(len(prompts))
        for sample in by_rank[i % topology.world_size][i // topology.world_size]
    ]


def summarize(samples: Sequence[EvaluationSample]) -> dict[str, Any]:
    """Accuracy and its surroundings.

    `accuracy` is the mean over prompts of the mean verdict of their valid samples;
    `accuracy_stderr` its standard error over prompts. `pass_at_k` is the share of prompts with a
    right sample among their k. Prompts without a valid sample count in `invalid_frac` only; with
    none but those, there is no accuracy (None).
    """
    by_prompt: dict[str, list[float]] = {}
    for sample in samples:
        if sample.verdict is not None:
            by_prompt.setdefault(sample.id, []).append(sample.verdict)
    means = [math.fsum(v) / len(v) for v in by_prompt.values()]
    accuracy = math.fsum(means) / len(means) if means else 0.0
    variance = math.fsum((m - accuracy) ** 2 for m in means) / max(1, len(means) - 1)
    num_prompts = len({sample.id for sample in samples})
    num_samples = len(samples)
    return {
        "num_prompts": num_prompts,
        "num_samples": num_samples,
        "accuracy": accuracy if means else None,
        "accuracy_stderr": math.sqrt(variance / len(means)) if means else None,
        "pass_at_k": sum(max(v) >= 1 for v in by_prompt.values()) / len(means) if means else None,
        "k": num_samples // max(1, num_prompts),
        "invalid_frac": sum(s.verdict is None for s in samples) / max(1, num_samples),
        "truncated_frac": sum(s.finish_reason == "length" for s in samples) / max(1, num_samples),
        "mean_tokens": sum(s.num_tokens for s in samples) / max(1, num_samples),
    }


def eval_metrics(samples: Sequence[EvaluationSample]) -> dict[str, float]:
    """`eval/*`: the summary's numbers, for the metrics of a run."""
    summary = summarize(samples)
    return {f"eval/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}


def _samples(
    group: RolloutGroup, written: RankRollouts, tokenizer: Tokenizer
) -> list[EvaluationSample]:
    pairs = [(rollout, written[rollout.slot]) for rollout in group.rollouts]
    return [
        EvaluationSample(
            id=group.prompt.id,
            sample=r.sample,
            text=tokenizer.decode_completion(tokens.token_ids[tokens.loss_mask].tolist()),
            num_tokens=r.num_completion_tokens,
            finish_reason=r.finish_reason,
            verdict=r.score.verdict if r.score.valid else None,
            reason=r.score.reason,
            difficulty=group.prompt.difficulty,
            breakdown=dict(r.score.breakdown),
        )
        for r, tokens in pairs
    ]
