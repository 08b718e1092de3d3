"""Losses, as pure functions of one microbatch; ESPO is in `compass.train.espo`.

Each returns this microbatch's *share* of the loss, a local sum over global counts, so that shares
add up over microbatches and ranks to the same number however the batch was split.

The surrogate of a token with ratio s and advantage A is min(s A, clip(s, 1-eps_low, 1+eps_high) A);
a loss is its negative, aggregated as each method says. Every policy loss weighs its tokens with
`token_weights` and leaves the denominators alone.

Shape legend: R loss tokens of a microbatch, B its sequences, V vocabulary,
U units (a unit is the set of tokens that share one ratio: a rollout, or an entropy group of it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compass.means import Means


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What a loss may look at. Built by `compass.train.trainer`."""

    logprobs_R: Tensor
    """Of the policy being updated; carries the gradient."""
    old_logprobs_R: Tensor
    """Of the same weights as the rollout, computed by the trainer."""
    entropy_R: Tensor
    """Full-vocabulary entropy in nats of the policy being updated; carries a gradient where the
    loss has an entropy term."""
    old_entropy_R: Tensor
    """Under the old policy."""
    advantages_R: Tensor
    correction_R: Tensor
    """Weight of each token for the gap between generator and trainer (`compass.train.correction`);
    ones when the gap is not corrected. Carries no gradient."""
    sequence_ids_R: Tensor
    """In [0, B), non-decreasing."""
    weights_B: Tensor
    """Factor on the loss of each sequence: less than 1 where more were sampled than others have."""
    num_sequences: int
    num_rollouts: float
    """Global count of rollouts in the minibatch: the denominator of means over rollouts."""
    num_tokens: float
    """Global count of loss tokens in the minibatch: the denominator of means over tokens."""
    vocab_size: int
    reference_logprobs_R: Tensor | None = None
    """Of the reference policy; None where the loss has no KL term."""

    @property
    def token_weights(self) -> Tensor:
        """[R], beside the weights of the aggregation: each token's correction times the factor of
        its sequence."""
        return self.correction_R * self.weights_B[self.sequence_ids_R]


Loss = Callable[[LossInputs], tuple[Tensor, Means]]

FlatAdvantages = Callable[[Tensor, Tensor, Tensor], Tensor]
"""entropy_R, sequence_ids_R, flat_sign_B -> advantages_R, zero where the sign is."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """GRPO (arXiv 2402.03300)."""

    clip_low: float = 0.2
    """Largest step of the token ratio below 1."""
    clip_high: float = 0.2
    """Largest step of the token ratio above 1."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(grpo_loss, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class DrGrpoConfig:
    """Dr. GRPO (arXiv 2503.20783). Its other half is `advantage.normalize = "none"`."""

    clip_low: float = 0.2
    """Largest step of the token ratio below 1."""
    clip_high: float = 0.2
    """Largest step of the token ratio above 1."""

    def bind(self, max_completion_tokens: int) -> Loss:
        """The loss with these values; the sum over a rollout is divided by the given constant."""
        return partial(
            dr_grpo_loss,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            max_completion_tokens=max_completion_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class DapoConfig:
    """DAPO's loss (arXiv 2503.14476)."""

    clip_low: float = 0.2
    """Largest step of the token ratio below 1."""
    clip_high: float = 0.28
    """Largest step of the token ratio above 1."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(dapo_loss, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class GspoConfig:
    """GSPO (arXiv 2507.18071)."""

    clip_low: float = 3e-4
    """Largest step of the sequence ratio below 1."""
    clip_high: float = 4e-4
    """Largest step of the sequence ratio above 1."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(gspo_loss, clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class CispoConfig:
    """CISPO (arXiv 2506.13585)."""

    clip_high: float = 4.0
    """Largest step of the token ratio above 1. The paper tunes it and gives no value; this one caps
    the weight at 5, in the range that arXiv 2510.13786 found insensitive."""

    def bind(self) -> Loss:
        """The loss with these values."""
        return partial(cispo_loss, clip_high=self.clip_high)


def sft_loss(x: LossInputs) -> tuple[Tensor, Means]:
    """Cross-entropy in nats, a mean over all loss tokens of the batch."""
    nll_R = -x.logprobs_R
    means = Means()
    means.add_values("sft/nll", nll_R)
    means.add_values("actor/entropy", x.old_entropy_R)
    return nll_R.sum() / x.num_tokens, means


def grpo_loss(x: LossInputs, *, clip_low: float, clip_high: float) -> tuple[Tensor, Means]:
    """Token ratios; mean over the tokens of a rollout, then over rollouts (arXiv 2402.03300)."""
    return clipped_surrogate(x, token_ratio(x), clip_low, clip_high, rollout_mean_weights(x))


def dr_grpo_loss(
    x: LossInputs, *, clip_low: float, clip_high: float, max_completion_tokens: int
) -> tuple[Tensor, Means]:
    """Token ratios; sum over the tokens of a rollout over a constant, then mean over rollouts.

    A token weighs the same in a short rollout as in a long one (arXiv 2503.20783; the constant is
    the generation budget, as in its appendix's code).
    """
    weight_R = constant_weights(x, max_completion_tokens)
    return clipped_surrogate(x, token_ratio(x), clip_low, clip_high, weight_R)


def dapo_loss(x: LossInputs, *, clip_low: float, clip_high: float) -> tuple[Tensor, Means]:
    """Token ratios, a wider clip above; mean over all tokens (arXiv 2503.14476, eq. 8-9)."""
    return clipped_surrogate(x, token_ratio(x), clip_low, clip_high, token_mean_weights(x))


def gspo_loss(x: LossInputs, *, clip_low: float, clip_high: float) -> tuple[Tensor, Means]:
    """One ratio per rollout, s_i = exp(mean log r_t), in the token form sg[s_i] pi / sg[pi]
    (arXiv 2507.18071, GSPO-token); aggregated as GRPO."""
    ratio_R = unit_ratio(x, x.sequence_ids_R, x.num_sequences) * token_gradient(x)
    return clipped_surrogate(x, ratio_R, clip_low, clip_high, rollout_mean_weights(x))


def cispo_loss(x: LossInputs, *, clip_high: float) -> tuple[Tensor, Means]:
    """REINFORCE, each token weighted with its detached ratio, capped above; mean over all tokens
    (arXiv 2506.13585, eq. 4-5, without a lower bound).

    A capped token keeps a gradient, so `actor/pg_clipfrac` counts capped weights here.
    """
    ratio_R = token_ratio(x).detach()
    weight_R = token_mean_weights(x) * x.token_weights
    capped_R = ratio_R.clamp_max(1 + clip_high)
    loss = -(capped_R * x.advantages_R * x.logprobs_R * weight_R).sum()
    nothing_R = torch.zeros_like(ratio_R, dtype=torch.bool)
    return loss, policy_metrics(
        x, loss, weight_R, clipped_R=ratio_R > 1 + clip_high, cut_R=nothing_R
    )


def token_ratio(x: LossInputs) -> Tensor:
    """r_t = pi / pi_old of each token; carries the gradient."""
    return (x.logprobs_R - x.old_logprobs_R).exp()


def token_gradient(x: LossInputs) -> Tensor:
    """pi / sg[pi]: ones that carry each token's gradient (arXiv 2507.18071, GSPO-token)."""
    return (x.logprobs_R - x.logprobs_R.detach()).exp()


def unit_ratio(x: LossInputs, unit_R: Tensor, num_units: int) -> Tensor:
    """sg[s]: the detached geometric-mean ratio of each token's unit."""
    log_ratio_R = (x.logprobs_R - x.old_logprobs_R).detach()
    mean_U, _ = segment_mean(log_ratio_R, unit_R, num_units)
    return mean_U.exp()[unit_R]


def segment_mean(values_R: Tensor, unit_R: Tensor, num_units: int) -> tuple[Tensor, Tensor]:
    """Mean of `values_R` in each unit (0 where empty), and the units' sizes as floats."""
    zeros_U = values_R.new_zeros(num_units)
    count_U = zeros_U.index_add(0, unit_R, torch.ones_like(values_R))
    return zeros_U.index_add(0, unit_R, values_R) / count_U.clamp_min(1), count_U


def clipped_surrogate(
    x: LossInputs,
    ratio_R: Tensor,
    eps_low: Tensor | float,
    eps_high: Tensor | float,
    weight_R: Tensor,
) -> tuple[Tensor, Means]:
    """The negative surrogate of every token, times `weight_R` and its own weight, summed."""
    clipped_R = ratio_R.clamp(1 - eps_low, 1 + eps_high)  # type: ignore[arg-type]
    surrogate_R = torch.minimum(ratio_R * x.advantages_R, clipped_R * x.advantages_R)
    weight_R = weight_R * x.token_weights
    loss = -(surrogate_R * weight_R).sum()
    # A token is clipped when its gradient is cut off, not merely when its ratio is outside.
    cut_R = clipped_R * x.advantages_R < ratio_R * x.advantages_R
    return loss, policy_metrics(x, loss, weight_R, clipped_R=cut_R, cut_R=cut_R)


def rollout_mean_weights(x: LossInputs) -> Tensor:
    """Weights that turn a sum over tokens into a mean over rollouts of means over tokens."""
    ones_R = torch.ones_like(x.sequence_ids_R)
    count_B = ones_R.new_zeros(x.num_sequences).scatter_add_(0, x.sequence_ids_R, ones_R)
    return 1.0 / (count_B[x.sequence_ids_R] * x.num_rollouts)


def token_mean_weights(x: LossInputs) -> Tensor:
    """Weights that turn a sum over tokens into a mean over all tokens of the minibatch."""
    return torch.full_like(x.old_logprobs_R, 1.0 / x.num_tokens)


def constant_weights(x: LossInputs, max_completion_tokens: int) -> Tensor:
    """Weights that turn a sum over tokens into a mean over rollouts of sums over a constant."""
    return torch.full_like(x.old_logprobs_R, 1.0 / (max_completion_tokens * x.num_rollouts))


def policy_metrics(
    x: LossInputs, loss: Tensor, weight_R: Tensor, *, clipped_R: Tensor, cut_R: Tensor
) -> Means:
    """What our policy losses log.

    Args:
        weight_R: what multiplies each token's surrogate.
        clipped_R: tokens for `actor/pg_clipfrac`.
        cut_R: tokens without a gradient. `actor/cut_grad_frac` weighs each with |weight A| (1 - p),
            p its probability under the policy being updated: the gradient of its own logit, were
            its ratio 1 and not cut. A token that is all but certain counts for nothing.
    """
    means = basic_metrics(x, loss)
    means.add_values("actor/pg_clipfrac", clipped_R)
    size_R = (weight_R * x.advantages_R).abs() * -x.logprobs_R.detach().expm1()
    means.add("actor/cut_grad_frac", torch.where(cut_R, size_R, 0.0).sum(), size_R.sum())
    return means


def basic_metrics(x: LossInputs, loss: Tensor) -> Means:
    """What is logged of any policy loss: its value, entropy, and the distance from the old policy.

    The value is per trained rollout, so that a minibatch of many flat groups reads like any other.
    """
    means = Means()
    ids_R = x.sequence_ids_R  # sorted
    is_first_R = torch.cat([torch.ones_like(ids_R[:1]).bool(), ids_R[1:] != ids_R[:-1]])
    num_trained = (x.weights_B[ids_R] * is_first_R).sum()
    means.add("actor/pg_loss", loss, num_trained / x.num_rollouts)
    means.add_values("actor/ppo_kl", (x.old_logprobs_R - x.logprobs_R).detach())
    means.add_values("actor/entropy", x.old_entropy_R)
    return means
