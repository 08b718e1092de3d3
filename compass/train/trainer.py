"""The trainer: old log-probabilities, forward/backward with replayed routes, optimizer step.

Shape legend: T packed tokens, R loss tokens, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compass.distributed import Topology
from compass.means import Means
from compass.models.context import ForwardContext, RoutingTrace
from compass.models.layers.attention import PackedAttention
from compass.models.layers.router import FlipCounts, check_routes, count_flips
from compass.models.parallel import reshard
from compass.models.policy import Policy
from compass.train.correction import Correction, CorrectionConfig, correction_weights
from compass.train.loss import FlatAdvantages, Loss, LossInputs
from compass.train.optim import clip_grad_norm, learning_rate, make_optimizer, take_step
from compass.train.optim_config import OptimConfig
from compass.types import Microbatch, TokenScores

NO_CORRECTION = CorrectionConfig().resolve(quantised=False)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did."""

    grad_norm: float
    """Global norm before clipping."""
    lr: float
    skipped: bool
    """The gradient was not finite: weights and moments were left alone."""


@dataclass(frozen=True, kw_only=True)
class TokenPass:
    """What a forward pass of the update saw of each loss token. Built by
    `Trainer.forward_backward`."""

    scores: TokenScores
    """Without their gradient."""
    advantages: Tensor
    """[R] float32, RL-ZVP's included."""
    flips: Tensor | None
    """[R] int16: of the choices recorded at the token that predicts this one, over all layers,
    those that the live router would not have made; None where nothing is replayed."""


class Trainer:
    """Owns the optimizer of a sharded policy. Every method that runs the model is collective:
    all ranks must call it the same number of times."""

    def __init__(
        self,
        policy: Policy,
        topology: Topology,
        cfg: OptimConfig,
        *,
        num_steps: int,
        temperature: float = 1.0,
        correction: Correction = NO_CORRECTION,
        reference: Policy | None = None,
        entropy_gradient: bool = False,
    ) -> None:
        """`num_steps` optimizer steps end the schedule; `temperature` is the rollout's;
        `correction` weighs tokens whose rollout found them likelier or less likely; `reference`
        and `entropy_gradient` are for losses with such terms (`compass.train.terms`)."""
        self.policy = policy
        self.topology = topology
        self.cfg = cfg
        self.num_steps = num_steps
        self.temperature = temperature
        self.correction = correction
        self.reference = reference
        self.entropy_gradient = entropy_gradient
        self.optimizer = make_optimizer(policy, cfg)
        self.num_updates = 0
        """Optimizer steps taken so far: the schedule's clock."""
        self.num_skipped = 0
        """Steps that were not taken because their gradient was not finite."""

    @torch.no_grad()
    def score(self, microbatch: Microbatch) -> tuple[TokenScores, Tensor]:
        """Log-probabilities and entropies of the loss tokens under the current weights, and the
        live routes_TLK of the pass (what Router Replay's `r2` mode replays)."""
        scores, trace = run_policy(
            self.policy, microbatch, self.topology.device, temperature=self.temperature
        )
        return scores, trace.live_TLK

    @torch.no_grad()
    def _reference_logprobs(self, microbatch: Microbatch) -> Tensor | None:
        """Of the loss tokens under the reference, along the routes of the update: where it is the
        policy itself, its log-probabilities are the policy's to the bit."""
        if self.reference is None:
            return None
        scores, _ = run_policy(
            self.reference, microbatch, self.topology.device, temperature=self.temperature
        )
        reshard(self.reference)  # else its vocabulary would stay gathered through the update
        return scores.logprobs

    def forward_backward(
        self,
        microbatch: Microbatch,
        loss: Loss,
        *,
        num_rollouts: float,
        num_tokens: float,
        old: TokenScores | None = None,
        flat_advantages: FlatAdvantages | None = None,
    ) -> tuple[Means, TokenPass]:
        """Add this microbatch's share of the gradient; returns metrics, and what this forward pass
        saw of each token.

        Args:
            loss: a share-of-the-loss function of `compass.train.loss`.
            num_rollouts, num_tokens: global denominators of the minibatch.
            old: scores before the update; None when the current weights are the old policy, or
                the loss has none (SFT).
            flat_advantages: RL-ZVP, for sequences with a `flat_sign`; it sees the entropies of the
                policy being updated. None trains no flat group.
        """
        device = self.topology.device
        reference_R = self._reference_logprobs(microbatch)
        scores, trace = run_policy(
            self.policy,
            microbatch,
            device,
            temperature=self.temperature,
            entropy_gradient=self.entropy_gradient,
        )
        sequence_ids_R = microbatch.sequence_ids.to(device)
        now = TokenScores(logprobs=scores.logprobs.detach(), entropy=scores.entropy.detach())
        old = old or now
        correction_R, correction_means = correction_weights(
            old.logprobs,
            microbatch.rollout_logprobs.to(device),
            sequence_ids_R,
            microbatch.num_sequences,
            mode=self.correction.mode,
            cap=self.correction.cap,
        )
        advantages_R = microbatch.advantages.to(device)
        if flat_advantages is not None:
            signs_B = microbatch.flat_signs.to(device)
            advantages_R = advantages_R + flat_advantages(now.entropy, sequence_ids_R, signs_B)
        share, means = loss(
            LossInputs(
                logprobs_R=scores.logprobs,
                entropy_R=scores.entropy,
                reference_logprobs_R=reference_R,
                old_logprobs_R=old.logprobs,
                old_entropy_R=old.entropy,
                advantages_R=advantages_R,
                correction_R=correction_R,
                weights_B=microbatch.weights.to(device),
                sequence_ids_R=sequence_ids_R,
                num_sequences=microbatch.num_sequences,
                num_rollouts=num_rollouts,
                num_tokens=num_tokens,
                vocab_size=self.policy.spec.vocab_size,
            )
        )
        means.update(correction_means)
        share.backward()
        flips_R = None
        if trace.forced_TLK is not None and len(microbatch.rows):
            flips = add_flips(means, trace.forced_TLK, trace.live_TLK)
            flips_R = flips.flips_T[microbatch.rows.to(device)]
        return means, TokenPass(scores=now, advantages=advantages_R, flips=flips_R)

    def step(self) -> StepReport:
        """Clip, step, forget the gradients. A gradient that is not finite skips the step on every
        rank alike (the norm is global)."""
        lr = learning_rate(self.num_updates, self.num_steps, self.cfg)
        norm = clip_grad_norm(self.policy.parameters(), self.cfg.max_grad_norm, self.topology)
        skipped = not bool(norm.isfinite())
        if not skipped:
            take_step(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += not skipped
        self.num_skipped += skipped
        return StepReport(grad_norm=norm.item(), lr=lr, skipped=skipped)

    def state_dict(self) -> dict[str, int]:
        """Counters for a checkpoint; JSON values."""
        return {"num_updates": self.num_updates, "num_skipped": self.num_skipped}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take back the counters; weights and moments are restored by the checkpoint itself."""
        self.num_updates = state["num_updates"]
        self.num_skipped = state["num_skipped"]


def run_policy(
    policy: Policy,
    microbatch: Microbatch,
    device: torch.device,
    *,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[TokenScores, RoutingTrace]:
    """Score a microbatch's loss tokens, replaying its routes if it has any. Collective.

    Raises:
        ValueError: recorded routes that no router of the policy could have made.
    """
    forced_TLK = microbatch.routed_experts
    if forced_TLK is not None:  # as they were recorded: routers widen them layer by layer
        forced_TLK = forced_TLK.to(device)
        check_routes(forced_TLK, policy.spec.num_experts)
    trace = RoutingTrace.empty(
        len(microbatch.token_ids),
        policy.spec.num_moe_layers,
        policy.spec.top_k,
        device=device,
        forced_TLK=forced_TLK,
    )
    scores = policy(
        microbatch.token_ids.to(device),
        microbatch.positions.to(device),
        ForwardContext(
            attention=PackedAttention(microbatch.sequence_lengths, device), routing=trace
        ),
        microbatch.rows.to(device),
        microbatch.targets.to(device),
        temperature,
        entropy_gradient=entropy_gradient,
    )
    return scores, trace


def add_flips(means: Means, recorded_TLK: Tensor, live_TLK: Tensor) -> FlipCounts:
    """`router/*`: what the router would choose now against the record (docs/router_replay.md).
    Returns what they are made of."""
    counts = count_flips(recorded_TLK.to(live_TLK.device), live_TLK)
    num_layers, top_k = recorded_TLK.shape[1:]
    choices_per_layer = counts.replayed_tokens * top_k
    means.add("router/flip_rate", counts.flips_L.sum(), choices_per_layer * num_layers)
    for layer, flips in enumerate(counts.flips_L):
        means.add(f"router/flip_rate/layer_{layer:02d}", flips, choices_per_layer)
    means.add("router/token_flip_rate", counts.tokens_with_flip, counts.replayed_tokens)
    means.add(
        "router/missing_frac",
        counts.missing_tokens,
        counts.missing_tokens + counts.replayed_tokens,
    )
    return counts
