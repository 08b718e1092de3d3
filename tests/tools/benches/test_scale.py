"""tools/bench.py scale: what it counts, and its roofline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from benches.cost_model import StepPoint
from benches.scale import roofline_seconds

from compass.models.specs import SPECS


def test_every_setting_gives_a_point_of_each_kind(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    figures = figures_of(
        "scale --spec debug --batches 1 12 --contexts 4 40 --num-steps 3 --repeats 1"
    )
    decodes = [
        (p["num_sequences"], p["num_context_tokens"], p["num_prompt_tokens"])
        for p in figures["decode_points"]
    ]
    # The second of three steps meets the prompt and two tokens more.
    assert decodes == [(1, 6, 0), (12, 72, 0), (1, 42, 0), (12, 504, 0)]
    fed = [p["num_prompt_tokens"] for p in figures["prompt_points"]]
    assert fed == [4, 8, 40, 80]  # twelve completions are two groups, each of one prompt
    first, last = figures["decode_points"][:2]
    assert figures["ratio"] == pytest.approx(12 * first["seconds"] / last["seconds"])
    assert set(figures["cost_model"]) == {
        "base_seconds",
        "expert_seconds",
        "missed_share",
        "per_sequence_seconds",
        "per_context_token_seconds",
        "per_prompt_token_seconds",
    }
    assert figures["roofline_shares"] is None


def test_roofline_is_bytes_for_one_sequence_and_operations_for_many() -> None:
    spec = replace(SPECS["debug-dense"], tie_word_embeddings=True)
    one = StepPoint(num_sequences=1, num_context_tokens=0, num_prompt_tokens=0, seconds=1.0)
    many = replace(one, num_sequences=10**6)
    num_params = spec.num_params.total
    rates = {"itemsize": 2, "tflops": 100.0, "gb_per_s": 1000.0}
    assert roofline_seconds(spec, one, **rates) == 2 * num_params / 1e12
    norms = sum(2 * spec.hidden_size + 2 * spec.head_dim for _ in range(spec.num_layers))
    matrices = num_params - norms - spec.hidden_size
    assert roofline_seconds(spec, many, **rates) == pytest.approx(2 * matrices * 1e6 / 1e14)


def test_roofline_reads_the_experts_a_batch_is_expected_to_choose() -> None:
    spec = SPECS["debug-4m"]
    rates = {"itemsize": 4, "tflops": 1e9, "gb_per_s": 1.0}

    def num_weights(batch: int) -> float:
        point = StepPoint(
            num_sequences=batch, num_context_tokens=0, num_prompt_tokens=0, seconds=1.0
        )
        return roofline_seconds(spec, point, **rates) * 1e9 / 4

    assert num_weights(1) == pytest.approx(spec.num_params.active)
    assert num_weights(500) == pytest.approx(spec.num_params.total)
