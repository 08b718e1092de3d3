"""Summaries of evaluations, by hand."""

import json
import math

import pytest

from compass.rl.evaluate import EvaluationSample, summarize


def sample(name: str, number: int, verdict: float | None, tokens: int = 10) -> EvaluationSample:
    return EvaluationSample(
        id=name,
        sample=number,
        text="",
        num_tokens=tokens,
        finish_reason="length" if tokens > 10 else "stop",
        verdict=verdict,
        reason="" if verdict is not None else "timeout after 5 s",
        difficulty=None,
        breakdown={},
    )


def test_accuracy_is_a_mean_over_prompts_of_their_valid_samples():
    samples = [
        sample("a", 0, 1.0),
        sample("a", 1, 0.0),
        sample("b", 0, 1.0, tokens=30),
        sample("b", 1, None),  # b counts by its one valid sample
        sample("c", 0, 0.0),
        sample("c", 1, 0.5),  # partly right is not passed
        sample("d", 0, None),
        sample("d", 1, None),  # d has no verdict: it is neither right nor wrong
    ]
    means = [0.5, 1.0, 0.25]
    mean = sum(means) / 3
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / 2)
    assert summarize(samples) == pytest.approx(
        {
            "num_prompts": 4,
            "num_samples": 8,
            "accuracy": mean,
            "accuracy_stderr": spread / math.sqrt(3),
            "pass_at_k": 2 / 3,
            "k": 2,
            "invalid_frac": 3 / 8,
            "truncated_frac": 1 / 8,
            "mean_tokens": 100 / 8,
        }
    )


def test_one_prompt_has_no_spread():
    summary = summarize([sample("a", 0, 1.0)])
    assert (summary["accuracy"], summary["accuracy_stderr"]) == (1.0, 0.0)


def test_without_a_valid_sample_there_is_no_accuracy_and_the_summary_is_json():
    summary = summarize([sample("a", 0, None)])
    assert summary["accuracy"] is summary["accuracy_stderr"] is summary["pass_at_k"] is None
    assert summary["invalid_frac"] == 1.0
    json.dumps(summary, allow_nan=False)
