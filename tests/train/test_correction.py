"""Rollout correction: weights against a loop, their way into every loss and into the trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.means import Means
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.rl.pack import PackConfig, pack
from compass.train.correction import CorrectionConfig, correction_weights
from compass.train.espo import EspoConfig
from compass.train.loss import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    Loss,
    LossInputs,
)
from compass.train.optim_config import OptimConfig
from compass.train.trainer import Trainer
from tests.tiny_batch import SPEC, random_groups, written_by
from tests.train.loss_by_hand import mean, random_batch, whole

MODES = ("off", "tis", "mis_token", "mis_sequence")


def weights_by_loop(gaps: list[list[float]], mode: str, cap: float) -> list[float]:
    weights = []
    for sequence in gaps:
        geometric = math.exp(mean(sequence))
        for gap in sequence:
            w = math.exp(gap)
            inside = {
                "mis_token": 1 / cap <= w <= cap,
                "mis_sequence": 1 / cap <= geometric <= cap,
            }
            weights.append(min(w, cap) if mode == "tis" else float(inside[mode]))
    return weights


def corrected(gaps: list[list[float]], mode: str, cap: float):
    flat = torch.tensor([gap for sequence in gaps for gap in sequence], dtype=torch.float64)
    lengths = torch.tensor([len(sequence) for sequence in gaps])
    ids = torch.arange(len(gaps)).repeat_interleave(lengths)
    old = torch.full_like(flat, -1.5)
    return correction_weights(old, old - flat, ids, len(gaps), mode=mode, cap=cap)


@given(
    gaps=st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=6), min_size=1, max_size=6),
    mode=st.sampled_from(["tis", "mis_token", "mis_sequence"]),
    cap=st.sampled_from([1.3, 2.0, 5.0]),
)
def test_correction_weights_equal_a_loop(gaps, mode, cap):
    weight_R, _ = corrected(gaps, mode, cap)
    assert weight_R.tolist() == pytest.approx(weights_by_loop(gaps, mode, cap))


def test_correction_counts_what_it_clips_and_drops(alone):
    gaps = [[1.0, 0.5, -1.0], [1.0, 0.9], [0.1]]
    logged = {mode: corrected(gaps, mode, 2.0)[1].reduce(alone) for mode in MODES}
    assert logged["off"] == {}
    assert logged["tis"]["correction/clipped_frac"] == pytest.approx(3 / 6)
    assert logged["mis_token"]["correction/dropped_frac"] == pytest.approx(4 / 6)
    assert logged["mis_sequence"]["correction/dropped_frac"] == pytest.approx(2 / 6)
    assert logged["mis_sequence"]["correction/mean_weight"] == pytest.approx(4 / 6)


def test_a_gap_that_overflows_is_capped_not_infinite():
    weight_R, _ = corrected([[1000.0, -1000.0]], "tis", 2.0)
    assert weight_R.tolist() == [pytest.approx(2.0), 0.0]


def test_a_cap_that_drops_everything_is_refused():
    with pytest.raises(UserError, match=r"correction\.cap=1\.0 must be above 1"):
        CorrectionConfig(cap=1.0)


@pytest.mark.parametrize("quantised", [False, True])
def test_auto_corrects_quantised_generators_only_and_a_choice_stands(quantised):
    automatic = CorrectionConfig(cap=3.0).resolve(quantised=quantised)
    assert (automatic.mode, automatic.cap) == ("tis" if quantised else "off", 3.0)
    for mode in MODES:
        assert CorrectionConfig(mode=mode).resolve(quantised=quantised).mode == mode


LOSSES: dict[str, tuple[Loss, float]] = {
    "grpo": (GrpoConfig().bind(), 0.2),
    "dr_grpo": (DrGrpoConfig().bind(40), 0.2),
    "dapo": (DapoConfig().bind(), 0.2),
    "gspo": (GspoConfig().bind(), 1e-3),
    "cispo": (CispoConfig(clip_high=0.3).bind(), 0.3),
    "espo": (EspoConfig().bind(), 0.01),
    "espo, four groups, as printed": (EspoConfig(num_groups=4, ratio="printed").bind(), 0.01),
}
"""With a spread of log-ratios that clips some tokens and leaves others."""


def gradient(loss: Loss, x: LossInputs) -> torch.Tensor:
    (grad,) = torch.autograd.grad(loss(x)[0], x.logprobs_R)
    return grad


@pytest.mark.parametrize("name", LOSSES)
def test_every_policy_loss_weighs_its_tokens_with_the_correction(name):
    """The loss is linear in the weights, and denominators do not follow them."""
    loss, spread = LOSSES[name]
    x = whole(random_batch(7, spread, (7, 1, 12, 2, 5, 9, 30, 3)))
    weight_R = torch.rand(len(x.logprobs_R), dtype=torch.float64)
    weight_R[3] = 0.0
    weighted = replace(x, correction_R=weight_R)
    torch.testing.assert_close(gradient(loss, weighted), gradient(loss, x) * weight_R)
    alone_R = torch.stack(
        [loss(replace(x, correction_R=one_hot))[0] for one_hot in torch.eye(len(weight_R)).double()]
    )
    assert loss(weighted)[0].item() == pytest.approx((alone_R * weight_R).sum().item())
    assert loss(x)[0].item() == pytest.approx(alone_R.sum().item())


# ---- the trainer


def test_the_trainer_hands_every_loss_the_weights_of_its_own_old_scores(alone):
    policy = build_policy(SPEC, alone, PolicyConfig(), lambda p: init_policy(p, 0))
    groups, written = written_by(0, random_groups(3, 2, seed=0), seed=0)
    batch = pack(groups, [[1.0, -1.0]] * 3, written, SPEC, alone, PackConfig(),
                 numbers=range(3), replay=True)  # fmt: skip
    (microbatch,) = batch.minibatches[0].microbatches
    scorer = Trainer(policy, alone, OptimConfig(), num_steps=1)
    old, _ = scorer.score(microbatch)
    noise_B = torch.linspace(-1.5, 1.5, 6)
    noise_R = noise_B[microbatch.sequence_ids] + torch.linspace(-0.5, 0.5, len(microbatch.rows))
    microbatch = replace(microbatch, rollout_logprobs=old.logprobs + noise_R)
    seen: list[LossInputs] = []

    def loss(x: LossInputs) -> tuple[torch.Tensor, Means]:
        seen.append(x)
        return GrpoConfig().bind()(x)

    for mode in MODES:
        correction = CorrectionConfig(mode=mode, cap=2.0).resolve(quantised=True)
        trainer = Trainer(policy, alone, OptimConfig(), num_steps=1, correction=correction)
        means, _ = trainer.forward_backward(
            microbatch, loss, num_rollouts=6, num_tokens=len(microbatch.rows), old=old
        )
        expected, expected_means = correction_weights(
            old.logprobs, microbatch.rollout_logprobs, microbatch.sequence_ids, 6,
            mode=mode, cap=2.0,
        )  # fmt: skip
        assert torch.equal(seen[-1].correction_R, expected)
        logged = means.reduce(alone)
        assert expected_means.reduce(alone).items() <= logged.items()
        _, now = trainer.forward_backward(microbatch, loss, num_rollouts=6, num_tokens=3)
        assert torch.equal(now.scores.logprobs, old.logprobs)
        assert torch.equal(seen[-1].correction_R, expected)
        assert 0 < logged.get("correction/dropped_frac", 0.5) < 1
