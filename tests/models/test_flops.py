"""Closed-form operation counts against the operations torch runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compass.models.context import ForwardContext
from compass.models.flops import (
    attention_flops_per_pair,
    forward_flops,
    peak_tflops,
    training_flops,
)
from compass.models.layers.attention import PackedAttention
from compass.models.policy import Policy, iter_init
from compass.models.specs import SPECS, ModelSpec
from tests.tiny_batch import SPEC

LENGTH, SCORED = 24, 10


def grouped_mm_flops(a_shape: tuple, b_shape: tuple, *args: object, **kwargs: object) -> int:
    """Forward [R, D] x [E, D, F] and, for weights, [D, R] x [R, F]: each row meets one expert."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]


def counted_flops(spec: ModelSpec, *, train: bool) -> int:
    """What torch counts, with attention computed as the full square of products."""
    policy = Policy(spec)
    with torch.no_grad():
        for (_, parameter), (_, value) in zip(
            policy.named_parameters(), iter_init(policy, 0), strict=True
        ):
            parameter.copy_(value)
    mapping = {torch.ops.aten._grouped_mm: grouped_mm_flops}
    context = ForwardContext(attention=PackedAttention((LENGTH,), "cpu"), routing=None)
    ids, rows = torch.arange(LENGTH), torch.arange(LENGTH - SCORED, LENGTH)
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(train):
        scores = policy(ids, ids, context, rows, targets_R=rows)
        if train:
            scores.logprobs.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, num_experts=0, top_k=0, dense_layers=())], ids=["moe", "dense"]
)
def test_a_forward_pass_costs_what_torch_counts(spec: ModelSpec) -> None:
    upper = attention_flops_per_pair(spec) * LENGTH * (LENGTH - 1) / 2
    expected = forward_flops(spec, LENGTH, num_scored=SCORED) + upper
    assert counted_flops(spec, train=False) == expected


@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, num_experts=0, top_k=0, dense_layers=())], ids=["moe", "dense"]
)
def test_training_costs_three_forward_passes(spec: ModelSpec) -> None:
    upper = 3 * attention_flops_per_pair(spec) * LENGTH * (LENGTH - 1) / 2
    expected = training_flops(spec, [(LENGTH, SCORED)]) + upper
    assert counted_flops(spec, train=True) == pytest.approx(expected, rel=1e-12)


def test_long_sequences_approach_two_operations_per_active_parameter_plus_attention() -> None:
    """The rule of thumb of arXiv 2001.08361 (2 per parameter and token), embeddings as output."""
    spec = SPECS["30b-a3b"]
    num_matrix_params = spec.num_params.active - spec.vocab_size * spec.hidden_size
    per_token = forward_flops(spec, 1) - attention_flops_per_pair(spec)
    assert per_token == pytest.approx(2 * num_matrix_params, rel=1e-3)


def test_a_sequence_costs_more_than_its_halves() -> None:
    spec = SPECS["debug"]
    assert forward_flops(spec, 200) > 2 * forward_flops(spec, 100)
    assert forward_flops(spec, 0) == 0


def test_peaks_are_found_by_the_name_torch_gives() -> None:
    assert peak_tflops("NVIDIA H200") == 989.0
    assert peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_tflops("NVIDIA H20") == 148.0
    assert peak_tflops("NVIDIA GeForce RTX 4090") is None
