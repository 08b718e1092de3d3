"""The update: old scores that its own forward pass gives are those of a pass of their own, to the
last bit, and are asked for beforehand where they must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from compass.distributed import Topology
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, full_tensor, init_policy
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Minibatch, PackConfig, pack
from compass.rl.update import ScoredMinibatch, score_old, update, update_metrics
from compass.rl.zero_variance.residual import residual_advantages
from compass.train.correction import Correction, CorrectionConfig
from compass.train.espo import EspoConfig
from compass.train.optim_config import OptimConfig
from compass.train.policy_loss import PolicyLossConfig
from compass.train.trainer import Trainer
from compass.types import Replay
from tests.tiny_batch import SPEC, random_advantages, random_groups, written_by

LOSSES = PolicyLossConfig()
IN_BATCH = PolicyLossConfig(espo=EspoConfig(scope="batch"))
MASKED = CorrectionConfig(mode="mis_token", cap=3.0).resolve(quantised=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What two minibatches left behind."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]


def make_trainer(topology: Topology, correction: Correction = MASKED) -> Trainer:
    policy = build_policy(
        SPEC, topology, PolicyConfig(activation_checkpointing=True), lambda p: init_policy(p, 0)
    )
    optim = OptimConfig(lr=1e-2, warmup_steps=0)
    return Trainer(policy, topology, optim, num_steps=2, temperature=0.9, correction=correction)


def make_minibatches(topology: Topology) -> tuple[Minibatch, ...]:
    """Two, of several microbatches; the third group is flat and right."""
    groups, written = written_by(0, random_groups(6, 3, seed=0), seed=0)
    advantages = random_advantages(groups, 0)
    advantages[2] = [0.0] * 3
    cfg = PackConfig(num_minibatches=2, max_tokens_per_microbatch=60)
    batch = pack(
        groups, advantages, written, SPEC, topology, cfg, numbers=range(6), replay=True,
        flat_signs=[0, 0, 1, 0, 0, 0],
    )  # fmt: skip
    assert all(len(minibatch.microbatches) > 1 for minibatch in batch.minibatches)
    return batch.minibatches


def run(
    topology: Topology, losses: PolicyLossConfig, name: str, *, entropies_first: bool
) -> Outcome:
    trainer = make_trainer(topology)
    scored = score_old(trainer, make_minibatches(topology), "r3", entropies_first=entropies_first)
    assert (scored[0].old is None) is not entropies_first
    updates = [
        update(
            trainer,
            minibatch,
            losses.choose(name, max_completion_tokens=20)(minibatch.entropies, topology),
            lambda entropy, ids, signs: residual_advantages(entropy, ids, signs, scale=0.1),
        )
        for minibatch in scored
    ]
    weights = {
        key: full_tensor(parameter).detach().clone()
        for key, parameter in trainer.policy.named_parameters()
    }
    return Outcome(weights=weights, metrics=update_metrics(updates, topology))


@pytest.mark.parametrize("name", ["espo", "gspo", "dapo", "cispo"])
def test_scores_of_the_update_itself_train_as_scores_of_a_pass_before_it(name, topology):
    assert not LOSSES.needs_entropies(name)
    spared, scored = (run(topology, LOSSES, name, entropies_first=first) for first in (False, True))
    assert spared.metrics == scored.metrics
    assert spared.metrics["mismatch/logprob_abs_mean"] > 0.1
    assert 0 < spared.metrics["correction/dropped_frac"] < 1
    for key, weight in scored.weights.items():
        assert torch.equal(spared.weights[key], weight), key


def test_thresholds_over_the_whole_minibatch_ask_for_its_entropies_first(topology):
    assert IN_BATCH.needs_entropies("espo")
    assert not IN_BATCH.needs_entropies("gspo")
    trainer = make_trainer(topology)
    first, second = make_minibatches(topology)
    scored, _ = score_old(trainer, [first, second], "r3", entropies_first=True)
    assert [len(e) for e in scored.entropies] == [len(m.rows) for m in first.microbatches]
    assert run(topology, IN_BATCH, "espo", entropies_first=True).metrics["espo/eps_high"] > 0


@pytest.mark.parametrize("replay", ["r2", "off"])
def test_only_r2_needs_the_pass_that_records_its_routes(replay: Replay, topology):
    trainer = make_trainer(topology)
    minibatches = [
        replace(
            minibatch,
            microbatches=tuple(replace(m, routed_experts=None) for m in minibatch.microbatches),
        )
        for minibatch in make_minibatches(topology)
    ]
    first, second = score_old(trainer, minibatches, replay, entropies_first=False)
    assert (first.old is None) == (replay == "off")
    assert second.old is not None
    for scored in (first, second):
        recorded = [m.routed_experts is not None for m in scored.microbatches]
        assert all(recorded) if replay == "r2" else not any(recorded)


def test_later_minibatches_are_scored_by_the_weights_that_precede_the_first_step(topology):
    trainer = make_trainer(topology)
    minibatches = make_minibatches(topology)
    expected = [trainer.score(m)[0].logprobs for m in minibatches[1].microbatches]
    scored = score_old(trainer, minibatches, "r3", entropies_first=False)
    dapo = LOSSES.choose("dapo", max_completion_tokens=20)([], topology)
    updates = [update(trainer, minibatch, dapo, None) for minibatch in scored]
    assert all(map(torch.equal, updates[1].old_logprobs, expected))
    now = [trainer.score(m)[0].logprobs for m in minibatches[1].microbatches]
    assert not any(map(torch.equal, now, expected))


def test_nothing_to_train_on_is_skipped_and_reports_nothing(topology):
    trainer = make_trainer(topology)
    nothing = Minibatch(
        microbatches=(), members=(), num_rollouts=3, num_tokens=9, num_trained_rollouts=0
    )
    scored = ScoredMinibatch(minibatch=nothing, microbatches=(), old=None)
    updated = update(trainer, scored, LOSSES.choose("dapo", max_completion_tokens=20)([], topology),
                     None)  # fmt: skip
    assert trainer.num_updates == 0
    assert update_metrics([updated], topology) == {} == mismatch_metrics([], [], topology)
