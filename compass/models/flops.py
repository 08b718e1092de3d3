"""Floating-point operations of a model, in closed form: for utilisation, and as the cost of a
sequence when work is balanced.

A multiply-add counts as two. Matrix products only (norms, rotary embeddings and softmax are left
out), causal attention as the lower triangle it needs, an expert for each of the K that a token is
routed to. The convention is that of model FLOPs utilisation (arXiv 2204.02311, appendix B): what
recomputation, padding or masked-out attention cost does not count.
"""

from __future__ import annotations

from collections.abc import Iterable

from compass.models.specs import ModelSpec

BACKWARD = 2
"""A backward pass costs twice its forward pass: a product for the input, one for the weight."""


def linear_flops_per_token(spec: ModelSpec) -> int:
    """Of one token in one forward pass, whatever its position: the projections of attention, the
    feed-forward or the K experts and their router. Without the vocabulary."""
    d = spec.hidden_size
    attention = 4 * d * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    experts = 2 * d * spec.num_experts + spec.top_k * 6 * d * spec.moe_intermediate_size
    num_dense = spec.num_layers - spec.num_moe_layers
    return (
        spec.num_layers * attention
        + spec.num_moe_layers * experts
        + num_dense * 6 * d * spec.intermediate_size
    )


def attention_flops_per_pair(spec: ModelSpec) -> int:
    """Of one query meeting one key, over all layers and heads: the score and the weighted value."""
    return 4 * spec.num_layers * spec.num_heads * spec.head_dim


def vocabulary_flops_per_row(spec: ModelSpec) -> int:
    """Of one position whose next token is scored or drawn."""
    return 2 * spec.hidden_size * spec.vocab_size


def forward_flops(spec: ModelSpec, sequence_length: int, *, num_scored: int | None = None) -> float:
    """One forward pass over one sequence from its first token.

        T (linear + attention (T + 1) / 2) + scored rows * vocabulary

    Args:
        sequence_length: T, tokens fed.
        num_scored: positions that meet the vocabulary; None: all.
    """
    num_pairs = sequence_length * (sequence_length + 1) / 2
    num_rows = sequence_length if num_scored is None else num_scored
    return (
        sequence_length * linear_flops_per_token(spec)
        + num_pairs * attention_flops_per_pair(spec)
        + num_rows * vocabulary_flops_per_row(spec)
    )


def training_flops(spec: ModelSpec, sequences: Iterable[tuple[int, int]]) -> float:
    """Forward and backward pass over sequences of (tokens fed, tokens scored)."""
    return (1 + BACKWARD) * sum(
        forward_flops(spec, length, num_scored=num_scored) for length, num_scored in sequences
    )


PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
)
"""Part of a CUDA device's name and its dense bfloat16 peak in TFLOP/s (vendor's data sheets,
without sparsity); the first that matches."""


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a device as torch names it; None when it is not in the table."""
    return next((peak for part, peak in PEAK_TFLOPS if part in device_name), None)
