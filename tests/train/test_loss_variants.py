"""DAPO, Dr. GRPO, CISPO and the options of ESPO, against loops.

A loop takes the batch twice: `now` carries the gradient, and what an equation wraps in sg[.] is
computed from `at`. Central differences move `now` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compass.distributed import build_topology
from compass.errors import UserError
from compass.means import Means
from compass.train.espo import (
    EspoConfig,
    entropy_cuts,
    entropy_groups,
    espo_surrogate,
    group_shares,
    groups_by_cuts,
)
from compass.train.loss import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    Loss,
    LossInputs,
)
from compass.train.policy_loss import PolicyLossConfig
from tests.distributed_run import run_ranks
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

Batch = list[Sequence]
Loop = Callable[[Batch, Batch], float]

LENGTHS = (7, 1, 12, 2, 5, 9, 30, 3)
BUDGET = 40
CUTS = (2.5, 1.25)


# ---- the equations, token by token


def tokens(now: Batch, at: Batch) -> list[tuple[float, float, float, float]]:
    """(log pi, sg[log pi], log pi_old, A) of every token."""
    return [
        (*logprobs, s.advantage)
        for s, frozen in zip(now, at, strict=True)
        for logprobs in zip(s.logprobs, frozen.logprobs, s.old, strict=True)
    ]


def dapo_by_loop(now: Batch, at: Batch) -> float:
    return -mean([surrogate(math.exp(p - o), A, 0.2, 0.28) for p, _, o, A in tokens(now, at)])


def dr_grpo_by_loop(now: Batch, at: Batch) -> float:
    sums = [
        sum(surrogate(math.exp(p - o), A, 0.2, 0.2) for p, _, o, A in tokens([s], [frozen]))
        for s, frozen in zip(now, at, strict=True)
    ]
    return -mean([total / BUDGET for total in sums])


def cispo_by_loop(now: Batch, at: Batch) -> float:
    return -mean([min(math.exp(sg - o), 1.3) * A * p for p, sg, o, A in tokens(now, at)])


def by_rank(s: Sequence, num_groups: int) -> list[list[int]]:
    """Group j ends after the ceil(j n / K) most uncertain tokens."""
    n = len(s.entropy)
    order = sorted(range(n), key=lambda t: (-s.entropy[t], t))
    ends = [math.ceil(Fraction(j * n, num_groups)) for j in range(num_groups + 1)]
    return [order[start:end] for start, end in pairwise(ends)]


def by_cuts(s: Sequence) -> list[list[int]]:
    members: list[list[int]] = [[], [], []]
    for t, entropy in enumerate(s.entropy):
        members[sum(entropy < cut for cut in CUTS)].append(t)
    return members


def espo_by_loop(
    now: Batch, at: Batch, groups: Callable[[Sequence], list[list[int]]], printed: bool
) -> float:
    per_rollout = []
    for s, frozen in zip(now, at, strict=True):
        per_group = []
        for members in filter(None, groups(s)):
            eps = 0.02 / math.log(VOCAB) * mean([s.entropy[t] for t in members])
            eps *= max(1, math.sqrt(40 / len(members)))
            base = s.old if printed else frozen.logprobs
            ratios = [
                group_ratio(frozen, members) * math.exp(s.logprobs[t] - base[t]) for t in members
            ]
            per_group.append(mean([surrogate(r, s.advantage, eps, eps) for r in ratios]))
        per_rollout.append(mean(per_group))
    return -mean(per_rollout)


LOSSES: dict[str, tuple[Loss, Loop, float]] = {
    "dapo": (DapoConfig().bind(), dapo_by_loop, 0.2),
    "dr_grpo": (DrGrpoConfig().bind(BUDGET), dr_grpo_by_loop, 0.2),
    "cispo": (CispoConfig(clip_high=0.3).bind(), cispo_by_loop, 0.3),
    "espo, four groups": (
        EspoConfig(num_groups=4, reference_tokens=40).bind(),
        partial(espo_by_loop, groups=partial(by_rank, num_groups=4), printed=False),
        0.01,
    ),
    "espo, as printed": (
        EspoConfig(num_groups=3, ratio="printed", reference_tokens=40).bind(),
        partial(espo_by_loop, groups=partial(by_rank, num_groups=3), printed=True),
        0.01,
    ),
    "espo, quantiles of the batch": (
        EspoConfig(num_groups=3, scope="batch", reference_tokens=40).bind(CUTS),
        partial(espo_by_loop, groups=by_cuts, printed=False),
        0.01,
    ),
}
"""Loss, its loop, and a spread of log-ratios that clips some tokens and leaves others."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_equations(name, seed, alone):
    loss, by_loop, spread = LOSSES[name]
    batch = random_batch(seed, spread, LENGTHS)
    x = whole(batch)
    value, means = loss(x)
    value.backward()
    assert value.item() == pytest.approx(by_loop(batch, batch), rel=1e-6, abs=1e-9)
    differences = central_differences(lambda now: by_loop(now, batch), batch)
    expected = torch.tensor(differences, dtype=torch.float64)
    torch.testing.assert_close(x.logprobs_R.grad, expected, rtol=1e-5, atol=1e-8)
    clipfrac = means.reduce(alone)["actor/pg_clipfrac"]
    if name == "cispo":
        assert (x.logprobs_R.grad != 0).all()
        capped = (x.logprobs_R - x.old_logprobs_R).exp() > 1.3
        assert 0 < clipfrac == pytest.approx(capped.double().mean().item())
    else:
        cut = x.logprobs_R.grad == 0
        assert 0 < cut.sum() < len(cut)
        assert clipfrac == pytest.approx(cut.double().mean().item())


@pytest.mark.parametrize("name", LOSSES)
def test_shares_add_up_over_any_split_into_microbatches(name, alone):
    loss, _, spread = LOSSES[name]
    batch = random_batch(5, spread, LENGTHS)
    x = whole(batch)
    value, means = loss(x)
    value.backward()
    shares, gradients, summed = [], [], Means()
    for first, last in pairwise((0, 1, 3, 4, 8)):
        part = inputs(batch[first:last], x.num_rollouts, x.num_tokens)
        share, part_means = loss(part)
        share.backward()
        shares.append(share.item())
        gradients.append(part.logprobs_R.grad)
        summed.update(part_means)
    assert sum(shares) == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients), x.logprobs_R.grad, rtol=1e-6, atol=0)
    assert summed.reduce(alone) == pytest.approx(means.reduce(alone), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [*LOSSES, "espo", "gspo", "grpo"])
def test_a_rollout_of_weight_three_is_three_rollouts(name):
    """The denominators are given, so that a weight can only act on the sum."""
    bound = {"espo": EspoConfig, "gspo": GspoConfig, "grpo": GrpoConfig}
    loss = bound[name]().bind() if name in bound else LOSSES[name][0]
    batch = random_batch(7, 0.1, LENGTHS)
    weights = (3, 1, 0, 2, 1, 1, 1, 0)
    weighted = inputs([replace(s, weight=w) for s, w in zip(batch, weights, strict=True)], 8, 69)
    repeated = inputs([s for s, w in zip(batch, weights, strict=True) for _ in range(w)], 8, 69)
    assert loss(weighted)[0].item() == pytest.approx(loss(repeated)[0].item(), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_microbatch_without_loss_tokens_adds_a_zero_that_has_a_gradient(name):
    x = inputs([Sequence(logprobs=[], old=[], entropy=[], advantage=1.0)], 4, 100)
    value, _ = LOSSES[name][0](x)
    value.backward()
    assert value.item() == 0
    assert x.logprobs_R.grad is not None


# ---- how the losses relate


def gradient(loss: Loss, x: LossInputs) -> torch.Tensor:
    (grad,) = torch.autograd.grad(loss(x)[0], x.logprobs_R)
    return grad


def test_rollouts_of_equal_length_make_the_token_means_one():
    """Then GRPO's, DAPO's and Dr. GRPO's aggregations differ by a constant only."""
    x = whole(random_batch(0, 0.2, (6, 6, 6, 6)))
    grpo = GrpoConfig(clip_high=0.28).bind()(x)[0]
    assert DapoConfig().bind()(x)[0].item() == pytest.approx(grpo.item())
    budget = DrGrpoConfig(clip_high=0.28).bind(24)(x)[0]
    assert budget.item() * 4 == pytest.approx(grpo.item())


def test_on_policy_every_loss_has_the_gradient_of_reinforce():
    """Before the first update all ratios are 1, and nothing is clipped."""
    batch = [replace(s, old=s.logprobs) for s in random_batch(1, 0.2, (6, 6, 6))]
    x = whole(batch)
    expected = -x.advantages_R / 18
    for bound in (DapoConfig(), CispoConfig(), GspoConfig(), EspoConfig(num_groups=3)):
        torch.testing.assert_close(gradient(bound.bind(), x), expected, rtol=1e-6, atol=0)


def test_as_many_groups_as_tokens_make_espos_ratios_grpos():
    x = whole(random_batch(2, 0.05, LENGTHS))
    groups = entropy_groups(x.old_entropy_R, x.sequence_ids_R, shares=group_shares(30, 0.2))
    _, _, ratio_R, _ = espo_surrogate(
        x, groups, num_groups=30, alpha=0.02, ratio="group", eps_min=1e-5, reference_tokens=1000
    )
    torch.testing.assert_close(ratio_R, (x.logprobs_R - x.old_logprobs_R).exp())


def test_one_group_has_no_cuts_and_is_the_same_in_both_scopes():
    x = whole(random_batch(3, 0.01, LENGTHS))
    one, _ = EspoConfig(num_groups=1).bind()(x)
    same, _ = EspoConfig(num_groups=1, scope="batch").bind(())(x)
    assert one.item() == same.item()


def test_the_printed_ratio_leaves_the_band_with_each_token_and_the_groups_does_not(alone):
    """Tokens that move both ways by more than the radius, in a rollout that stays where it was."""
    moves = [0.05, -0.05] * 4
    still = Sequence(
        logprobs=[-1 + move for move in moves], old=[-1.0] * 8, entropy=[1.0] * 8, advantage=1.0
    )
    outside = {
        ratio: EspoConfig(num_groups=1, ratio=ratio, reference_tokens=0)
        .bind()(whole([still]))[1]
        .reduce(alone)
        for ratio in ("group", "printed")
    }
    assert outside["group"]["espo/clipfrac_0"] == 0
    assert outside["printed"]["espo/clipfrac_0"] == 1


@pytest.mark.parametrize("bounds", [(0, 8), (0, 1, 3, 4, 8)], ids=["whole", "in microbatches"])
def test_it_says_how_large_groups_are_and_how_much_of_their_move_is_one_tokens(bounds, alone):
    batch, means = random_batch(9, 0.05, LENGTHS), Means()
    for first, last in pairwise(bounds):
        part = inputs(batch[first:last], len(batch), sum(LENGTHS))
        means.update(EspoConfig(num_groups=3).bind()(part)[1])
    metrics = means.reduce(alone)
    for group in range(3):
        groups = [(s, by_rank(s, 3)[group]) for s in batch]
        moves = [[(s.logprobs[t] - s.old[t]) ** 2 for t in members] for s, members in groups]
        moves = [of_group for of_group in moves if of_group]
        assert metrics[f"espo/tokens_{group}"] == pytest.approx(mean([len(m) for m in moves]))
        top = sum(map(max, moves)) / sum(map(sum, moves))
        assert metrics[f"espo/top_token_{group}"] == pytest.approx(top)


def test_a_group_that_stayed_where_it_was_says_nothing_of_its_move(alone):
    batch = [replace(s, old=s.logprobs) for s in random_batch(1, 0.2, (6, 6))]
    metrics = EspoConfig().bind()(whole(batch))[1].reduce(alone)
    assert metrics["espo/tokens_high"] == 2
    assert "espo/top_token_high" not in metrics


@pytest.mark.parametrize(
    "mistake",
    [{"num_groups": 0}, {"rho": 0.0}, {"rho": 1.5}, {"reference_tokens": -1}],
    ids=lambda m: next(iter(m)),
)
def test_groups_that_cannot_be_are_refused(mistake):
    with pytest.raises(
        UserError, match=f"espo.{next(iter(mistake))}={next(iter(mistake.values()))}"
    ):
        EspoConfig(**mistake)


# ---- quantiles of the batch


def cuts_by_sorting(entropy: list[float], shares: tuple[float, ...]) -> tuple[float, ...]:
    ordered = sorted(entropy, reverse=True)
    counts = [
        max(1, math.ceil(Fraction(share).limit_denominator(100) * len(ordered))) for share in shares
    ]
    return tuple(ordered[count - 1] for count in counts)


entropies = st.lists(
    st.one_of(st.floats(0, 12, width=32), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60
)


@given(entropy=entropies, num_groups=st.integers(2, 6), at=st.integers(0, 60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # nothing in it changes
def test_cuts_are_exact_order_statistics_however_they_are_dealt(entropy, num_groups, at, alone):
    shares = group_shares(num_groups, 0.2)
    parts = [torch.tensor(entropy[:at]), torch.tensor(entropy[at:])]
    cuts = entropy_cuts(parts, shares, alone)
    assert cuts == cuts_by_sorting(entropy, shares)
    sizes = groups_by_cuts(torch.tensor(entropy), cuts).bincount(minlength=num_groups)
    # Ties stay together, in the more uncertain group.
    for group, share in enumerate(shares):
        assert sizes[: group + 1].sum() >= math.ceil(share * len(entropy) - 1e-9)


def test_rounding_below_zero_counts_as_zero(alone):
    entropy = torch.tensor([-1e-8, -0.0, 0.0, 0.0])
    cuts = entropy_cuts([entropy], (0.5,), alone)
    assert cuts == (0.0,)
    assert groups_by_cuts(entropy, cuts).tolist() == [0, 0, 0, 0]


def shares_of_a_rank(rank: int) -> list[float]:
    """The shares of the loss where both ranks hold rollouts, and where one holds none."""
    topology = build_topology(rank, 2, device=torch.device("cpu"))
    losses = PolicyLossConfig(espo=EspoConfig(num_groups=3, scope="batch"))
    batch = random_batch(0, 0.01, LENGTHS)
    no_tokens = Sequence(logprobs=[], old=[], entropy=[], advantage=1.0)
    shares = []
    for mine in ((batch[:3], batch[3:])[rank], (batch, [no_tokens])[rank]):
        x = inputs(mine, len(batch), sum(LENGTHS))
        entropies = [x.old_entropy_R.float()]
        loss = losses.choose("espo", max_completion_tokens=BUDGET)(entropies, topology)
        shares.append(loss(x)[0].item())
    return shares


def test_batch_quantiles_are_those_of_all_ranks(tmp_path):
    x = whole(random_batch(0, 0.01, LENGTHS))
    cuts = cuts_by_sorting(x.old_entropy_R.float().tolist(), group_shares(3, 0.2))
    expected, _ = EspoConfig(num_groups=3, scope="batch").bind(cuts)(x)
    for dealt in zip(*run_ranks(shares_of_a_rank, tmp_path, 2), strict=True):
        assert sum(dealt) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("espo", EspoConfig().bind()),
        ("gspo", GspoConfig().bind()),
        ("grpo", GrpoConfig().bind()),
        ("dapo", DapoConfig().bind()),
        ("dr_grpo", DrGrpoConfig().bind(BUDGET)),
        ("cispo", CispoConfig().bind()),
    ],
)
def test_each_name_binds_its_loss(name, direct, alone):
    x = whole(random_batch(6, 0.3, LENGTHS))
    loss = PolicyLossConfig().choose(name, max_completion_tokens=BUDGET)([], alone)
    assert loss(x)[0].item() == direct(x)[0].item()
