"""Terms beside a policy loss: the KL to a reference, and entropy.

Each is added per token and aggregated as the loss aggregates its surrogate, over every rollout that
is not masked: a flat group has no surrogate, but it has these.

Shape legend: R loss tokens of a microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compass.errors import UserError
from compass.means import Means
from compass.train.loss import Loss, LossInputs

Aggregate = Callable[[LossInputs], Tensor]
"""weight_R that turns a sum over tokens into a loss's mean."""


@dataclass(frozen=True, kw_only=True)
class KlConfig:
    """The KL term of the loss (arXiv 2402.03300, eq. 4)."""

    coef: float = 0.0
    """Weight of the KL to the reference, which is the model that the run started from; 0 keeps no
    reference. Above 0 a second, sharded copy of the weights is held, and each token of the update
    costs one more forward pass."""

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise UserError(f"kl.coef={self.coef} must be 0 (no reference) or a number above")


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What is added to a policy loss. Built by `compass.rl.config`."""

    kl_coef: float
    entropy_coef: float

    @property
    def any(self) -> bool:
        """Whether there is a term, and rollouts without an advantage are trained for it."""
        return self.kl_coef != 0 or self.entropy_coef != 0

    def beside(self, loss: Loss, aggregate: Aggregate) -> Loss:
        """The loss with the terms: + kl_coef k3 - entropy_coef H, of each token."""
        if not self.any:
            return loss

        def with_terms(x: LossInputs) -> tuple[Tensor, Means]:
            value, means = loss(x)
            weight_R = aggregate(x) * x.token_weights
            if self.kl_coef:
                assert x.reference_logprobs_R is not None, "the trainer has a reference"
                k3_R = k3(x.logprobs_R, x.reference_logprobs_R)
                value = value + self.kl_coef * (k3_R * weight_R).sum()
                means.add_values("actor/kl_ref", k3_R.detach())
            if self.entropy_coef:
                value = value - self.entropy_coef * (x.entropy_R * weight_R).sum()
            return value, means

        return with_terms


NO_TERMS = LossTerms(kl_coef=0.0, entropy_coef=0.0)
"""The surrogate alone."""


def k3(logprobs_R: Tensor, reference_logprobs_R: Tensor) -> Tensor:
    """Of each token, an estimate of KL(policy || reference) from the policy's samples that is
    unbiased and never negative: r - 1 - log r with r = reference / policy."""
    log_ratio_R = reference_logprobs_R - logprobs_R
    return torch.expm1(log_ratio_R) - log_ratio_R
