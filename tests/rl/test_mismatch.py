"""Mismatch metrics against their equations and closed forms."""

import math

import pytest
import torch

from compass.rl.mismatch import mismatch_metrics


def test_each_metric_is_that_of_its_equation(topology):
    noise = torch.Generator().manual_seed(0)
    old = [-torch.rand(n, generator=noise) for n in (3, 1, 5)]
    rollout = [o + torch.randn(len(o), generator=noise) for o in old]
    gaps = [
        float(a - b) for o, r in zip(old, rollout, strict=True) for a, b in zip(o, r, strict=True)
    ]
    w = [math.exp(gap) for gap in gaps]
    n = len(w)
    assert mismatch_metrics(old, rollout, topology) == pytest.approx(
        {
            "mismatch/logprob_abs_mean": sum(abs(gap) for gap in gaps) / n,
            "mismatch/logprob_abs_max": max(abs(gap) for gap in gaps),
            "mismatch/k3_kl": sum(x - 1 - math.log(x) for x in w) / n,
            "mismatch/extreme_frac": sum(max(x, 1 / x) > 2 for x in w) / n,
            "mismatch/ess": sum(w) ** 2 / (n * sum(x * x for x in w)),
        },
        rel=1e-5,
    )


def test_equal_logprobs_are_no_mismatch(topology):
    logprobs = [-torch.rand(4)]
    assert mismatch_metrics(logprobs, logprobs, topology) == {
        "mismatch/logprob_abs_mean": 0,
        "mismatch/logprob_abs_max": 0,
        "mismatch/k3_kl": 0,
        "mismatch/extreme_frac": 0,
        "mismatch/ess": 1,
    }


def test_a_constant_gap_leaves_the_sample_size_whole(topology):
    metrics = mismatch_metrics([torch.zeros(5)], [torch.full((5,), -math.log(4))], topology)
    assert metrics["mismatch/ess"] == pytest.approx(1)
    assert metrics["mismatch/extreme_frac"] == 1
    assert metrics["mismatch/k3_kl"] == pytest.approx(3 - math.log(4))


def test_one_token_of_overwhelming_weight_is_a_sample_of_one(topology):
    gaps = torch.tensor([20.0, 0.0, 0.0, 0.0])
    metrics = mismatch_metrics([gaps], [torch.zeros(4)], topology)
    assert metrics["mismatch/ess"] == pytest.approx(1 / 4)


def test_a_small_gap_keeps_its_digits(topology):
    """k3 is gap^2/2 to first order; at 1e-7, w - 1 - log w would lose them even in float64."""
    gap = float(torch.tensor(1e-7))
    metrics = mismatch_metrics([torch.tensor([gap])], [torch.zeros(1)], topology)
    assert metrics["mismatch/k3_kl"] == pytest.approx(gap**2 / 2, rel=1e-4, abs=0)


def test_no_token_is_no_metric(topology):
    assert mismatch_metrics([], [], topology) == {}
    assert mismatch_metrics([torch.zeros(0)], [torch.zeros(0)], topology) == {}
