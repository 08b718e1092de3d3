"""How long one step of the generator takes, as a sum of five terms, and the fit of their rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """One kind of step and how long it took. Built by whoever measures."""

    num_sequences: int
    """Completions that got a token."""
    num_context_tokens: int
    """Tokens in the cache that their queries met, summed over completions."""
    num_prompt_tokens: int
    """Prompt tokens fed."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds of a step: base, experts read, sequences, context tokens and prompt tokens, summed.

    A step reads the experts that its sequences choose. Of n sequences nobody chooses an expert with
    probability `missed_share` ** n, if routers are uniform.
    """

    base_seconds: float
    """Kernel launches, Python, and reading weights that every step needs."""
    expert_seconds: float
    """Reading, and starting to multiply by, all experts."""
    missed_share: float
    """1 - top_k / num_experts; 1 without experts."""
    per_sequence_seconds: float
    """Per completion that gets a token: its matrix products, sampling and bookkeeping."""
    per_context_token_seconds: float
    """Per cached token attended to: reading keys and values."""
    per_prompt_token_seconds: float
    """Per token fed to fill the cache."""

    def fixed_seconds(self, num_sequences: int) -> float:
        """Of a step, whatever its context."""
        return (
            self.base_seconds
            + self.expert_seconds * (1 - self.missed_share**num_sequences)
            + self.per_sequence_seconds * num_sequences
        )

    def seconds(
        self, num_sequences: int, num_context_tokens: int, num_prompt_tokens: int = 0
    ) -> float:
        """Of one step."""
        return (
            self.fixed_seconds(num_sequences)
            + self.per_context_token_seconds * num_context_tokens
            + self.per_prompt_token_seconds * num_prompt_tokens
        )

    def relative_error(self, point: StepPoint) -> float:
        """(Model - measurement) / measurement."""
        modelled = self.seconds(
            point.num_sequences, point.num_context_tokens, point.num_prompt_tokens
        )
        return modelled / point.seconds - 1


def fit_cost_model(points: Sequence[StepPoint], *, missed_share: float) -> CostModel:
    """Least squares of the relative errors, no rate below zero.

    Decoding is fitted first; prompts are then what the rest of their steps' time pays for, since a
    single one can outweigh everything that is said about decoding.

    Raises:
        ValueError: no point that only decodes, or none with prompt tokens.
    """
    decodes = [p for p in points if not p.num_prompt_tokens]
    prompts = [p for p in points if p.num_prompt_tokens]
    if not decodes or not prompts:
        raise ValueError(f"{len(decodes)} decoding points and {len(prompts)} with prompts")
    rows = np.array(
        [
            [1.0, 1 - missed_share**p.num_sequences, p.num_sequences, p.num_context_tokens]
            for p in decodes
        ]
    )
    base, experts, per_sequence, per_context = map(
        float, _fit(rows, np.array([p.seconds for p in decodes]))
    )
    decoding = CostModel(
        base_seconds=base,
        expert_seconds=experts,
        missed_share=missed_share,
        per_sequence_seconds=per_sequence,
        per_context_token_seconds=per_context,
        per_prompt_token_seconds=0.0,
    )
    rest = [
        max(0.0, p.seconds - decoding.seconds(p.num_sequences, p.num_context_tokens))
        for p in prompts
    ]
    tokens = np.array([p.num_prompt_tokens for p in prompts])
    weights = 1 / np.array([p.seconds for p in prompts])
    per_prompt = (weights**2 * tokens) @ rest / ((weights * tokens) @ (weights * tokens))
    return replace(decoding, per_prompt_token_seconds=float(per_prompt))


def _fit(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Coefficients >= 0 that minimise the squared relative error. One that would be negative is set
    to zero and the others are fitted again."""
    kept = list(range(rows.shape[1]))
    coefficients = np.zeros(rows.shape[1])
    while kept:
        solved, *_ = np.linalg.lstsq(
            rows[:, kept] / seconds[:, None], np.ones(len(rows)), rcond=None
        )
        if solved.min() >= 0:
            coefficients[kept] = solved
            break
        kept.pop(int(solved.argmin()))
    return coefficients
