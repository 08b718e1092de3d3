"""The KL and entropy terms are those of a loop, value and gradient, for every aggregation."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from compass.errors import UserError
from compass.train.loss import DapoConfig, DrGrpoConfig, GrpoConfig
from compass.train.policy_loss import aggregate_of
from compass.train.terms import NO_TERMS, KlConfig, LossTerms
from tests.train.loss_by_hand import Sequence, central_differences, random_batch, whole

BUDGET = 20
LENGTHS = (7, 1, 4)
WEIGHTS = [1.0, 0.5, 0.25]
LOSSES = {
    "grpo": GrpoConfig().bind(),
    "dapo": DapoConfig().bind(),
    "dr_grpo": DrGrpoConfig().bind(BUDGET),
}


def share_of_a_token(name: str, length: int) -> float:
    """Of a token of a rollout of that length, in the mean that each loss takes."""
    return {
        "grpo": 1 / (length * len(LENGTHS)),
        "dapo": 1 / sum(LENGTHS),
        "dr_grpo": 1 / (BUDGET * len(LENGTHS)),
    }[name]


def kl_by_loop(name: str, batch: list[Sequence], references: list[list[float]]) -> float:
    """arXiv 2402.03300, eq. 4."""
    total = 0.0
    for s, reference in zip(batch, references, strict=True):
        for new, ref in zip(s.logprobs, reference, strict=True):
            ratio = math.exp(ref) / math.exp(new)
            k3 = ratio - math.log(ratio) - 1
            total += s.weight * share_of_a_token(name, len(s.logprobs)) * k3
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_the_terms_are_those_of_a_loop(name, alone):
    batch = [
        replace(s, weight=weight)
        for s, weight in zip(random_batch(3, 0.4, LENGTHS), WEIGHTS, strict=True)
    ]
    draw = random.Random(5)
    references = [[lp + draw.gauss(0, 0.7) for lp in s.logprobs] for s in batch]
    x = whole(batch)
    flat = torch.tensor([r for of_one in references for r in of_one], dtype=torch.float64)
    x = replace(x, reference_logprobs_R=flat)
    terms, loss = LossTerms(kl_coef=0.3, entropy_coef=0.2), LOSSES[name]
    aggregate = aggregate_of(name, BUDGET)
    value, means = terms.beside(loss, aggregate)(x)
    surrogate, _ = loss(x)
    entropy = sum(
        s.weight * share_of_a_token(name, len(s.logprobs)) * e for s in batch for e in s.entropy
    )
    expected = 0.3 * kl_by_loop(name, batch, references) - 0.2 * entropy
    assert (value - surrogate).item() == pytest.approx(expected, rel=1e-6)
    got_R, of_entropy_R = torch.autograd.grad(value - surrogate, (x.logprobs_R, x.entropy_R))
    slopes = central_differences(lambda moved: 0.3 * kl_by_loop(name, moved, references), batch)
    assert got_R.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-9)
    shares = [
        -0.2 * s.weight * share_of_a_token(name, len(s.logprobs)) for s in batch for _ in s.logprobs
    ]
    assert of_entropy_R.tolist() == pytest.approx(shares)
    ones = [replace(s, weight=1.0) for s in batch]
    mean = kl_by_loop("dapo", ones, references)
    assert means.reduce(alone)["actor/kl_ref"] == pytest.approx(mean)


def test_without_terms_a_loss_is_itself():
    loss = LOSSES["grpo"]
    assert NO_TERMS.beside(loss, aggregate_of("grpo", BUDGET)) is loss


@pytest.mark.parametrize("coef", [-0.1, math.inf, math.nan])
def test_a_weight_of_the_kl_that_is_none_is_refused(coef):
    with pytest.raises(UserError, match=rf"kl.coef={coef} must be 0"):
        KlConfig(coef=coef)
