"""Evaluation: generate and score every prompt of a set, and sum up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from compass.metrics import Stopwatch
from compass.rl.evaluation.estimates import as_numbers, majority_at, mean_over_prompts, pass_at
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.shares import whole_groups
from compass.rl.rollout import rollout
from compass.rl.writer import RolloutWriter
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, RolloutGroup, SamplingParams


@dataclass(frozen=True, kw_only=True)
class EvaluationSample:
    """One scored completion of an evaluation. Built by `evaluate`; JSON values only."""

    id: str
    sample: int
    text: str
    num_tokens: int
    finish_reason: str
    answer: str | None
    """What was judged; None where nothing was found, or the domain reads no single answer."""
    verdict: float | None
    """None when the verifier failed."""
    reason: str
    difficulty: float | None
    breakdown: dict[str, float]


def evaluate(
    writer: RolloutWriter,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    num_samples: int,
    seed: int,
) -> list[EvaluationSample]:
    """`num_samples` scored completions of every prompt, on every rank, in the prompts' order.

    Collective: whole prompts are shared among ranks and the samples gathered.
    """
    topology = writer.topology
    writer = replace(writer, sampling=sampling)
    written = RankRollouts(topology.rank)
    groups = rollout(
        writer,
        prompts,
        share=partial(whole_groups, world_size=topology.world_size),
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


def summarize(samples: Sequence[EvaluationSample]) -> dict[str, float | None]:
    """Accuracy, pass@k and majority@k for every k up to the samples of a prompt, each with its
    interval (`low`, `high`), and their surroundings.

    Samples without a verdict count in `invalid_frac` only. `accuracy` is the mean over prompts of
    the mean verdict of their valid samples, `accuracy_stderr` its standard error over prompts.
    pass@k and majority@k are means over the prompts that have k valid samples; a sample passes
    with a verdict of 1. None stands where no prompt has what it takes; majority@k is there only
    where some sample has an `answer`.
    """
    by_prompt: dict[str, list[EvaluationSample]] = {}
    valid: dict[str, list[tuple[str | None, float]]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.id, []).append(sample)
        if sample.verdict is not None:
            valid.setdefault(sample.id, []).append((sample.answer, sample.verdict))
    num_samples = len(samples)
    means = [math.fsum(v for _, v in of_one) / len(of_one) for of_one in valid.values()]
    num_valid = sum(map(len, valid.values()))
    return {
        "num_prompts": len(by_prompt),
        "num_samples": num_samples,
        **as_numbers("accuracy", mean_over_prompts(means, num_samples=num_valid)),
        "accuracy_stderr": _standard_error(means),
        **_at_every_k(valid, max(map(len, by_prompt.values()), default=0)),
        "invalid_frac": sum(s.verdict is None for s in samples) / max(1, num_samples),
        "truncated_frac": sum(s.finish_reason == "length" for s in samples) / max(1, num_samples),
        "mean_tokens": sum(s.num_tokens for s in samples) / max(1, num_samples),
    }


def eval_metrics(name: str, samples: Sequence[EvaluationSample]) -> dict[str, float]:
    """`eval/NAME/*`: the summary's numbers, for the metrics of a run."""
    summary = summarize(samples)
    return {f"eval/{name}/{k}": float(v) for k, v in summary.items() if v is not None}


def _standard_error(means: Sequence[float]) -> float | None:
    if not means:
        return None
    mean = math.fsum(means) / len(means)
    variance = math.fsum((m - mean) ** 2 for m in means) / max(1, len(means) - 1)
    return math.sqrt(variance / len(means))


def _at_every_k(
    valid: Mapping[str, Sequence[tuple[str | None, float]]], most: int
) -> dict[str, float | None]:
    """pass@k and majority@k for k = 1..`most`."""
    numbers: dict[str, float | None] = {}
    votes = any(answer is not None for of_one in valid.values() for answer, _ in of_one)
    majorities = [majority_at(*map(list, zip(*of_one, strict=True))) for of_one in valid.values()]
    for k in range(1, most + 1):
        enough = [of_one for of_one in valid.values() if len(of_one) >= k]
        passes = [
            pass_at(k, num_samples=len(of_one), num_right=sum(v >= 1 for _, v in of_one))
            for of_one in enough
        ]
        num_drawn = sum(map(len, enough))
        numbers |= as_numbers(f"pass@{k}", mean_over_prompts(passes, num_samples=num_drawn))
        if votes:
            majority = [of_one[k - 1] for of_one in majorities if len(of_one) >= k]
            estimate = mean_over_prompts(majority, num_samples=num_drawn)
            numbers |= as_numbers(f"majority@{k}", estimate)
    return numbers


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
            answer=r.score.answer,
            verdict=r.score.verdict if r.score.valid else None,
            reason=r.score.reason,
            difficulty=group.prompt.difficulty,
            breakdown=dict(r.score.breakdown),
        )
        for r, tokens in pairs
    ]
