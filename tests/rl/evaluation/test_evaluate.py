"""Summaries of evaluations, by hand."""

import json
import math

import pytest

from compass.rl.evaluation.evaluate import EvaluationSample, eval_metrics, summarize


def sample(
    name: str,
    number: int,
    verdict: float | None,
    *,
    answer: str | None = None,
    tokens: int = 10,
) -> EvaluationSample:
    return EvaluationSample(
        id=name,
        sample=number,
        text="",
        num_tokens=tokens,
        finish_reason="length" if tokens > 10 else "stop",
        answer=answer,
        verdict=verdict,
        reason="" if verdict is not None else "timeout after 5 s",
        difficulty=None,
        breakdown={},
    )


SAMPLES = [
    sample("a", 0, 1.0, answer="3"),
    sample("a", 1, 0.0, answer="4"),
    sample("b", 0, 1.0, tokens=30),
    sample("b", 1, None),  # b counts by its one valid sample
    sample("c", 0, 0.0),
    sample("c", 1, 0.5),  # partly right is not passed
    sample("d", 0, None),
    sample("d", 1, None),  # d has no verdict: it is neither right nor wrong
]


def test_accuracy_is_a_mean_over_prompts_of_their_valid_samples():
    means = [0.5, 1.0, 0.25]
    mean = sum(means) / 3
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / 2)
    summary = summarize(SAMPLES)
    assert summary["accuracy"] == pytest.approx(mean)
    assert summary["accuracy_stderr"] == pytest.approx(spread / math.sqrt(3))
    assert (summary["num_prompts"], summary["num_samples"]) == (4, 8)
    assert summary["invalid_frac"] == 3 / 8
    assert summary["truncated_frac"] == 1 / 8
    assert summary["mean_tokens"] == 100 / 8


def test_of_k_samples_only_prompts_with_k_verdicts_tell():
    summary = summarize(SAMPLES)
    assert summary["pass@1"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert summary["pass@2"] == pytest.approx((1 + 0) / 2)  # b has one verdict, d none
    # Of c no sample has an answer: it is wrong. Of a one of two is right, whichever k.
    assert summary["majority@1"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert summary["majority@2"] == pytest.approx((0.5 + 0) / 2)
    assert summary["pass@2/low"] < summary["pass@2"] < summary["pass@2/high"]
    assert "pass@3" not in summary


def test_where_no_sample_has_an_answer_there_is_no_majority():
    summary = summarize([sample("a", 0, 1.0), sample("a", 1, 0.0)])
    assert summary["pass@2"] == 1.0
    assert not any(key.startswith("majority") for key in summary)


def test_metrics_of_a_run_bear_the_name_of_the_evaluation():
    metrics = eval_metrics("hard", SAMPLES)
    assert metrics["eval/hard/pass@2"] == summarize(SAMPLES)["pass@2"]
    assert all(key.startswith("eval/hard/") for key in metrics)


def test_one_prompt_has_no_spread_but_an_interval():
    summary = summarize([sample("a", 0, 1.0)])
    assert (summary["accuracy"], summary["accuracy_stderr"]) == (1.0, 0.0)
    assert summary["accuracy/low"] < 0.5


def test_without_a_valid_sample_there_is_no_accuracy_and_the_summary_is_json():
    summary = summarize([sample("a", 0, None)])
    assert summary["accuracy"] is summary["accuracy_stderr"] is summary["pass@1"] is None
    assert summary["invalid_frac"] == 1.0
    assert "eval/x/accuracy" not in eval_metrics("x", [sample("a", 0, None)])
    json.dumps(summary, allow_nan=False)
