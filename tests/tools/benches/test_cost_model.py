"""The fit of the generator's cost model finds rates that are known."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from benches.cost_model import CostModel, StepPoint, fit_cost_model

TRUE = CostModel(
    base_seconds=5e-3,
    expert_seconds=4e-3,
    missed_share=0.75,
    per_sequence_seconds=1.3e-4,
    per_context_token_seconds=1.1e-6,
    per_prompt_token_seconds=6e-5,
)


def fit(points: list[StepPoint]) -> CostModel:
    return fit_cost_model(points, missed_share=TRUE.missed_share)


def points_of(model: CostModel, noise: float = 0.0) -> list[StepPoint]:
    """Steps of every kind, off by `noise` up and down in turn."""
    points = []
    for batch in (1, 4, 16, 64, 256):
        for context in (32, 512):
            for num_context, num_prompt in ((batch * context, 0), (0, batch * context)):
                error = noise * (1 if len(points) // 2 % 2 else -1)
                seconds = model.seconds(batch, num_context, num_prompt) * (1 + error)
                points.append(
                    StepPoint(
                        num_sequences=batch,
                        num_context_tokens=num_context,
                        num_prompt_tokens=num_prompt,
                        seconds=seconds,
                    )
                )
    return points


def test_exact_points_give_the_exact_rates() -> None:
    fitted = fit(points_of(TRUE))
    assert astuple(fitted) == pytest.approx(astuple(TRUE), rel=1e-9)
    assert all(abs(fitted.relative_error(p)) < 1e-9 for p in points_of(TRUE))


def test_errors_count_by_their_share_of_the_step() -> None:
    """5 % of the longest step are three times the base: it must not drown in them."""
    fitted = fit(points_of(TRUE, noise=0.05))
    assert astuple(fitted) == pytest.approx(astuple(TRUE), rel=0.15)


def test_no_rate_is_negative_and_the_others_are_fitted_without_it() -> None:
    rates = ("expert_seconds", "per_sequence_seconds", "per_context_token_seconds")
    base_alone = replace(TRUE, **dict.fromkeys(rates, 0.0), per_prompt_token_seconds=0.0)
    falling = [
        replace(p, seconds=p.seconds * (1 - 1e-3 * p.num_sequences)) for p in points_of(base_alone)
    ]
    fitted = fit(falling)
    assert min(astuple(fitted)) == 0.0
    assert fitted.base_seconds == pytest.approx(TRUE.base_seconds, rel=0.2)


def test_points_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="0 with prompts"):
        fit([p for p in points_of(TRUE) if not p.num_prompt_tokens])


def test_experts_are_read_as_far_as_they_are_chosen() -> None:
    model = replace(TRUE, base_seconds=1.0, expert_seconds=10.0, missed_share=0.5)
    model = replace(model, per_sequence_seconds=0.1)
    assert model.fixed_seconds(1) == pytest.approx(1 + 0.1 + 5)
    assert model.fixed_seconds(2) == pytest.approx(1 + 0.2 + 7.5)
    assert model.fixed_seconds(60) == pytest.approx(1 + 6 + 10)
    per_sequence = [model.fixed_seconds(n) / n for n in range(1, 100)]
    assert per_sequence == sorted(per_sequence, reverse=True), "the simulator's ideal rests on this"
    dense = replace(model, missed_share=1.0)
    assert dense.fixed_seconds(60) == pytest.approx(1 + 6)


def test_without_experts_nothing_is_spent_on_them() -> None:
    dense = replace(TRUE, expert_seconds=0.0, missed_share=1.0)
    fitted = fit_cost_model(points_of(dense), missed_share=1.0)
    assert astuple(fitted) == pytest.approx(astuple(dense), rel=1e-9)
