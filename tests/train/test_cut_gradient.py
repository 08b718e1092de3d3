"""`actor/cut_grad_frac`: the share of |weight A| (1 - p) whose gradient is cut, against a loop over
tokens, for every policy loss, however tokens are dealt to microbatches and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from compass.distributed import build_topology
from compass.means import Means
from compass.train.espo import EspoConfig
from compass.train.loss import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    Loss,
    LossInputs,
    sft_loss,
)
from tests.distributed_run import run_ranks
from tests.train.loss_by_hand import VOCAB, Sequence, group_ratio, inputs, random_batch

LENGTHS = (7, 1, 12, 2, 5, 9, 30, 3)
BUDGET = 40
Batch = list[Sequence]
Tokens = Iterator[tuple[float, float, float, float, int, int]]
"""Weight, ratio, radius below and above, rollout and place of each token."""


def grpo_tokens(batch: Batch, low: float = 0.2, high: float = 0.2) -> Tokens:
    for b, s in enumerate(batch):
        for t, (new, old) in enumerate(zip(s.logprobs, s.old, strict=True)):
            yield 1 / len(s.old) / len(batch), math.exp(new - old), low, high, b, t


def dr_grpo_tokens(batch: Batch) -> Tokens:
    for _, *others in grpo_tokens(batch):
        yield 1 / BUDGET / len(batch), *others  # type: ignore[misc]


def dapo_tokens(batch: Batch) -> Tokens:
    for _, *others in grpo_tokens(batch, 0.2, 0.28):
        yield 1 / sum(LENGTHS), *others  # type: ignore[misc]


def cispo_tokens(batch: Batch) -> Tokens:
    """A weight is capped, but no gradient is cut."""
    for _, *others in grpo_tokens(batch, math.inf, math.inf):
        yield 1 / sum(LENGTHS), *others  # type: ignore[misc]


def gspo_tokens(batch: Batch) -> Tokens:
    for weight, _, _, _, b, t in grpo_tokens(batch):
        s = batch[b]
        yield weight, group_ratio(s, list(range(len(s.old)))), 3e-4, 4e-4, b, t


def espo_tokens(batch: Batch) -> Tokens:
    """A fifth of the tokens in the first group, and eq. 8 from 100 tokens on."""
    for b, s in enumerate(batch):
        order = sorted(range(len(s.old)), key=lambda t: (-s.entropy[t], t))
        first = math.ceil(len(order) / 5)
        groups = [members for members in (order[:first], order[first:]) if members]
        for members in groups:
            entropy = sum(s.entropy[t] for t in members) / len(members)
            eps = 0.02 / math.log(VOCAB) * entropy * math.sqrt(100 / len(members))
            weight = 1 / len(members) / len(groups) / len(batch)
            for t in members:
                yield weight, group_ratio(s, members), eps, eps, b, t


LOSSES: dict[str, tuple[Loss, Callable[[Batch], Tokens], float]] = {
    "grpo": (GrpoConfig().bind(), grpo_tokens, 0.2),
    "dr_grpo": (DrGrpoConfig().bind(BUDGET), dr_grpo_tokens, 0.2),
    "dapo": (DapoConfig().bind(), dapo_tokens, 0.2),
    "gspo": (GspoConfig().bind(), gspo_tokens, 1e-3),
    "cispo": (CispoConfig(clip_high=0.1).bind(), cispo_tokens, 0.2),
    "espo": (EspoConfig(reference_tokens=100).bind(), espo_tokens, 0.1),
}
"""Loss, its tokens by hand, and a spread of log-ratios that cuts some and leaves others."""


def make_batch(spread: float) -> Batch:
    """No token is more than likely."""
    return [
        replace(s, logprobs=[x - 2 for x in s.logprobs], old=[x - 2 for x in s.old])
        for s in random_batch(8, spread, LENGTHS)
    ]


def corrections(batch: Batch) -> list[list[float]]:
    """Weights of the gap between generator and trainer; some tokens are dropped."""
    return [[(b + t) % 4 / 2 for t in range(len(s.old))] for b, s in enumerate(batch)]


def share_by_loop(batch: Batch, tokens: Tokens) -> float:
    cut = whole = 0.0
    for weight, ratio, low, high, b, t in tokens:
        A = batch[b].advantage
        size = abs(weight * corrections(batch)[b][t] * A) * (1 - math.exp(batch[b].logprobs[t]))
        is_cut = ratio > 1 + high if A > 0 else ratio < 1 - low
        cut += size * is_cut
        whole += size
    return cut / whole


def part(batch: Batch, first: int, last: int) -> LossInputs:
    """A microbatch of some rollouts of the minibatch."""
    x = inputs(batch[first:last], len(batch), sum(LENGTHS))
    weights = [w for of_rollout in corrections(batch)[first:last] for w in of_rollout]
    return replace(x, correction_R=torch.tensor(weights, dtype=torch.float64))


def means_of(name: str, bounds: tuple[int, ...]) -> Means:
    loss, _, spread = LOSSES[name]
    batch, means = make_batch(spread), Means()
    for first, last in pairwise(bounds):
        means.update(loss(part(batch, first, last))[1])
    return means


@pytest.mark.parametrize("bounds", [(0, 8), (0, 1, 3, 4, 8)], ids=["whole", "in microbatches"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_share_of_cut_gradient_is_that_of_a_loop(name, bounds, alone):
    _, tokens, spread = LOSSES[name]
    batch = make_batch(spread)
    metrics = means_of(name, bounds).reduce(alone)
    expected = share_by_loop(batch, tokens(batch))
    assert metrics["actor/cut_grad_frac"] == pytest.approx(expected, rel=1e-6)
    assert (expected == 0) if name == "cispo" else (0.02 < expected < 0.98)
    assert metrics["actor/cut_grad_frac"] != pytest.approx(metrics["actor/pg_clipfrac"], rel=1e-3)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cispo"}))
def test_what_is_cut_has_no_gradient(name):
    """The tokens that the loop calls cut are those that the loss leaves alone."""
    loss, tokens, spread = LOSSES[name]
    batch = make_batch(spread)
    x = part(batch, 0, len(batch))
    (gradient_R,) = torch.autograd.grad(loss(x)[0], x.logprobs_R)
    start = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
    for _, ratio, low, high, b, t in tokens(batch):
        is_cut = ratio > 1 + high if batch[b].advantage > 0 else ratio < 1 - low
        dropped = corrections(batch)[b][t] == 0
        assert (gradient_R[start[b] + t].item() == 0) == (is_cut or dropped)


def of_a_rank(rank: int) -> dict[str, float]:
    """Two rollouts here, six there."""
    topology = build_topology(rank, 2, device=torch.device("cpu"))
    bounds = ((0, 2), (2, 5, 8))[rank]
    return {name: means_of(name, bounds).reduce(topology)["actor/cut_grad_frac"] for name in LOSSES}


def test_the_share_is_that_of_all_ranks(tmp_path):
    for by_name in run_ranks(of_a_rank, tmp_path, 2):
        for name, (_, tokens, spread) in LOSSES.items():
            batch = make_batch(spread)
            assert by_name[name] == pytest.approx(share_by_loop(batch, tokens(batch)), rel=1e-6)


def test_a_token_that_is_all_but_certain_counts_for_nothing(alone):
    """Both tokens are outside the band; the certain one moved as far, and nothing hangs on it."""
    unsure = Sequence(logprobs=[-1.0], old=[-2.0], entropy=[1.0], advantage=1.0)
    certain = Sequence(logprobs=[-1e-9], old=[-1.0], entropy=[1.0], advantage=-1.0)
    metrics = GrpoConfig().bind()(inputs([unsure, certain], 2, 2))[1].reduce(alone)
    assert metrics["actor/pg_clipfrac"] == 0.5
    assert metrics["actor/cut_grad_frac"] == pytest.approx(1.0)


def test_supervised_training_cuts_nothing_and_says_nothing_of_it(alone):
    batch = make_batch(0.1)
    _, means = sft_loss(part(batch, 0, len(batch)))
    assert "actor/cut_grad_frac" not in means.reduce(alone)
