"""Losses against loops written from the equations, values and gradients.

The loops treat every ratio as an ordinary function of the log-probabilities. Differentiating
them gives the gradient that the token form sg[s] pi / sg[pi] is meant to have, so central
differences judge both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from compass.means import Means
from compass.train.espo import EspoConfig, entropy_groups, espo_surrogate
from compass.train.loss import GrpoConfig, GspoConfig, Loss, LossInputs, sft_loss
from tests.train.loss_by_hand import (
    VOCAB,
    Sequence,
    central_differences,
    group_ratio,
    inputs,
    mean,
    random_batch,
    surrogate,
    whole,
)

# ---- the equations, token by token


def sft_by_loop(batch: list[Sequence]) -> float:
    return -mean([lp for s in batch for lp in s.logprobs])


def grpo_by_loop(batch: list[Sequence], low: float = 0.2, high: float = 0.2) -> float:
    return -mean(
        [
            mean(
                [
                    surrogate(math.exp(new - old), s.advantage, low, high)
                    for new, old in zip(s.logprobs, s.old, strict=True)
                ]
            )
            for s in batch
        ]
    )


def gspo_by_loop(batch: list[Sequence], low: float = 3e-4, high: float = 4e-4) -> float:
    return -mean(
        [surrogate(group_ratio(s, list(range(len(s.old)))), s.advantage, low, high) for s in batch]
    )


def high_tokens(entropy: list[float], rho: Fraction) -> list[int]:
    count = max(1, math.ceil(rho * len(entropy)))
    return sorted(range(len(entropy)), key=lambda t: (-entropy[t], t))[:count]


def espo_by_loop(
    batch: list[Sequence],
    alpha: float = 0.02,
    rho: Fraction = Fraction(1, 5),
    eps_min: float = 1e-5,
    reference: int = 1000,
) -> float:
    per_rollout = []
    for s in batch:
        high = high_tokens(s.entropy, rho)
        low = [t for t in range(len(s.old)) if t not in high]
        per_group = []
        for members in (high, low):
            if members:
                eps = alpha / math.log(VOCAB) * mean([s.entropy[t] for t in members])
                eps = max(eps * max(1, math.sqrt(reference / len(members))), eps_min)
                per_group.append(surrogate(group_ratio(s, members), s.advantage, eps, eps))
        per_rollout.append(mean(per_group))
    return -mean(per_rollout)


LOSSES: dict[str, tuple[Loss, Callable[[list[Sequence]], float], float]] = {
    "sft": (sft_loss, sft_by_loop, 0.1),
    "grpo": (GrpoConfig().bind(), grpo_by_loop, 0.2),
    "gspo": (GspoConfig().bind(), gspo_by_loop, 1e-3),
    "espo": (EspoConfig().bind(), espo_by_loop, 0.3),
    "espo, some groups enlarged": (
        EspoConfig(reference_tokens=5).bind(),
        partial(espo_by_loop, reference=5),
        0.01,
    ),
    "espo, as printed": (
        EspoConfig(reference_tokens=0).bind(),
        partial(espo_by_loop, reference=0),
        0.01,
    ),
}
"""Loss, its loop, and a spread of log-ratios that clips some tokens and leaves others."""

LENGTHS = (7, 1, 12, 2, 5, 9, 30, 3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_equations(name, seed, alone):
    loss, by_loop, spread = LOSSES[name]
    batch = random_batch(seed, spread, LENGTHS)
    x = whole(batch)
    value, means = loss(x)
    value.backward()
    assert value.item() == pytest.approx(by_loop(batch), rel=1e-6, abs=1e-9)
    expected = torch.tensor(central_differences(by_loop, batch), dtype=torch.float64)
    torch.testing.assert_close(x.logprobs_R.grad, expected, rtol=1e-5, atol=1e-8)
    if name != "sft":
        cut = x.logprobs_R.grad == 0
        assert 0 < cut.sum() < len(cut)
        clipfrac = means.reduce(alone)["actor/pg_clipfrac"]
        assert clipfrac == pytest.approx(cut.double().mean().item())


@pytest.mark.parametrize("name", LOSSES)
def test_shares_add_up_over_any_split_into_microbatches(name, alone):
    loss, _, spread = LOSSES[name]
    batch = random_batch(5, spread, LENGTHS)
    x = whole(batch)
    value, means = loss(x)
    value.backward()
    for cuts in ((1,), (3, 4), (1, 2, 3, 4, 5, 6, 7)):
        bounds = [0, *cuts, len(batch)]
        shares, gradients, summed = [], [], Means()
        for first, last in pairwise(bounds):
            part = inputs(batch[first:last], x.num_rollouts, x.num_tokens)
            share, part_means = loss(part)
            share.backward()
            shares.append(share.item())
            gradients.append(part.logprobs_R.grad)
            summed.update(part_means)
        assert sum(shares) == pytest.approx(value.item(), rel=1e-6)
        torch.testing.assert_close(torch.cat(gradients), x.logprobs_R.grad, rtol=1e-6, atol=0)
        assert summed.reduce(alone) == pytest.approx(means.reduce(alone), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_microbatch_without_loss_tokens_adds_a_zero_that_has_a_gradient(name):
    no_tokens = Sequence(logprobs=[], old=[], entropy=[], advantage=1.0)
    x = inputs([no_tokens], 4, 100)
    value, _ = LOSSES[name][0](x)
    value.backward()
    assert value.item() == 0
    assert x.logprobs_R.grad is not None


# ---- limiting cases of ESPO


EQ_8 = {"alpha": 0.02, "ratio": "group", "eps_min": 1e-5}


@pytest.mark.parametrize("reference", [0, 1, 9, 1000])
def test_espo_with_one_group_is_gspo_with_an_adaptive_radius(reference):
    batch = random_batch(0, 0.01 if reference < 1000 else 0.1, LENGTHS)
    x = whole(batch)
    one_group = torch.zeros_like(x.sequence_ids_R)
    value, *_ = espo_surrogate(x, one_group, num_groups=1, **EQ_8, reference_tokens=reference)
    value.backward()
    total, gradients = 0.0, []
    for s in batch:
        alone = inputs([s], x.num_rollouts, x.num_tokens)
        eps = max(1e-5, 0.02 / math.log(VOCAB) * mean(s.entropy))
        eps *= max(1, math.sqrt(reference / len(s.entropy)))
        share, _ = GspoConfig(clip_low=eps, clip_high=eps).bind()(alone)
        share.backward()
        total += share.item()
        gradients.append(alone.logprobs_R.grad)
    assert value.item() == pytest.approx(total, rel=1e-6)
    torch.testing.assert_close(x.logprobs_R.grad, torch.cat(gradients), rtol=1e-6, atol=0)


def test_espo_with_all_tokens_in_the_high_group_has_one_group():
    x, y = (whole(random_batch(1, 0.01, LENGTHS)) for _ in range(2))
    one_group = torch.zeros_like(x.sequence_ids_R)
    expected, *_ = espo_surrogate(x, one_group, num_groups=1, **EQ_8, reference_tokens=1000)
    value, _ = EspoConfig(rho=1.0).bind()(y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def singletons(x: LossInputs) -> torch.Tensor:
    lengths = x.sequence_ids_R.bincount()
    return torch.cat([torch.arange(n) for n in lengths])


def test_singleton_groups_have_grpos_token_ratios():
    x = whole(random_batch(2, 0.05, LENGTHS))
    _, eps_R, ratio_R, _ = espo_surrogate(
        x, singletons(x), num_groups=max(LENGTHS), **EQ_8, reference_tokens=100
    )
    torch.testing.assert_close(ratio_R, (x.logprobs_R - x.old_logprobs_R).exp())
    torch.testing.assert_close(eps_R, 10 * 0.02 / math.log(VOCAB) * x.old_entropy_R)


def test_singleton_groups_of_equal_entropy_are_grpo():
    batch = [replace(s, entropy=[1.5] * len(s.old)) for s in random_batch(3, 0.05, LENGTHS)]
    x, y = whole(batch), whole(batch)
    value, eps_R, *_ = espo_surrogate(
        x, singletons(x), num_groups=max(LENGTHS), **EQ_8, reference_tokens=25
    )
    value.backward()
    eps = eps_R[0].item()
    expected, _ = GrpoConfig(clip_low=eps, clip_high=eps).bind()(y)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(x.logprobs_R.grad, y.logprobs_R.grad, rtol=1e-6, atol=0)
    cut = x.logprobs_R.grad == 0
    assert 0 < cut.sum() < len(cut)


def test_the_radius_never_falls_below_its_floor():
    certain = [replace(s, entropy=[0.0] * len(s.old)) for s in random_batch(4, 0.01, LENGTHS)]
    x = whole(certain)
    _, eps_R, *_ = espo_surrogate(
        x,
        torch.zeros_like(x.sequence_ids_R),
        num_groups=1,
        alpha=0.02,
        ratio="group",
        eps_min=3e-3,
        reference_tokens=1000,
    )
    assert torch.equal(eps_R, torch.full_like(eps_R, 3e-3))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    reference=st.integers(0, 80),
    rho=st.integers(1, 100),
)
def test_a_groups_radius_grows_with_the_root_of_what_it_lacks_to_the_reference(
    lengths, reference, rho
):
    no_floor = EQ_8 | {"eps_min": 0.0}  # a token that is all but certain has a radius below it
    x = whole(random_batch(0, 0.01, tuple(lengths)))
    group_R = entropy_groups(x.old_entropy_R, x.sequence_ids_R, shares=(rho / 100,))
    radii = [
        espo_surrogate(x, group_R, num_groups=2, **no_floor, reference_tokens=r)[1]
        for r in (0, reference)
    ]
    for b in range(len(lengths)):
        for group in range(2):
            members_R = (x.sequence_ids_R == b) & (group_R == group)
            if size := int(members_R.sum()):
                factor = math.sqrt(reference / size) if reference > size else 1.0
                torch.testing.assert_close(radii[1][members_R], factor * radii[0][members_R])


@pytest.mark.parametrize("size", [1, 4, 100, 1000])
def test_the_share_of_groups_outside_the_band_does_not_depend_on_their_size(size):
    """Of independent log-ratios of standard deviation 0.01, whose mean has 0.01 / sqrt(size): the
    band is one standard deviation wide at 1,000 tokens, and so it is at any smaller size."""
    draw = random.Random(size)
    alpha = 0.01 / math.sqrt(1000)
    move = [[draw.gauss(0, 0.01) for _ in range(size)] for _ in range(2000)]
    batch = [
        Sequence(logprobs=m, old=[0.0] * size, entropy=[math.log(VOCAB)] * size, advantage=1.0)
        for m in move
    ]
    x = whole(batch)
    _, eps_R, ratio_R, _ = espo_surrogate(
        x,
        torch.zeros_like(x.sequence_ids_R),
        num_groups=1,
        alpha=alpha,
        ratio="group",
        eps_min=1e-9,
        reference_tokens=1000,
    )
    outside = ((ratio_R - 1).abs() > eps_R).double().mean().item()
    assert outside == pytest.approx(math.erfc(math.sqrt(0.5)), abs=0.04)


# ---- entropy groups


@given(
    entropy=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), min_size=0, max_size=25), max_size=8
    ),
    hundredths=st.integers(1, 100),
)
@example(entropy=[[0.5] * 100], hundredths=7)  # 0.07 * 100 is more than 7 in floating point
def test_entropy_groups_equal_a_loop(entropy, hundredths):
    """Few distinct entropies make many ties; a rollout without loss tokens leaves a gap in ids."""
    rho = Fraction(hundredths, 100)
    lengths = torch.tensor([len(tokens) for tokens in entropy], dtype=torch.int64)
    got = entropy_groups(
        torch.tensor([e for tokens in entropy for e in tokens]),
        torch.arange(len(entropy)).repeat_interleave(lengths),
        shares=(float(rho),),
    )
    expected = []
    for tokens in entropy:
        high = high_tokens(tokens, rho)
        expected += [0 if t in high else 1 for t in range(len(tokens))]
    assert got.tolist() == expected
