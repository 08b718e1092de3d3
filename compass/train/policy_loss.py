"""Which policy loss a run uses, with the values of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from compass.distributed import Topology
from compass.errors import UserError
from compass.own import OwnValue, is_own
from compass.train.espo import EspoConfig, entropy_cuts, group_shares
from compass.train.loss import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    Loss,
    constant_weights,
    rollout_mean_weights,
    token_mean_weights,
)
from compass.train.own_loss import open_own_loss
from compass.train.terms import NO_TERMS, Aggregate, LossTerms

POLICY_LOSSES = ("espo", "gspo", "grpo", "dr_grpo", "dapo", "cispo")


class BindLoss(Protocol):
    """The loss of one minibatch. Collective."""

    def __call__(self, entropies: Sequence[Tensor], topology: Topology) -> Loss:
        """`entropies`: of this rank's trained tokens under the old policy, in any partition; none
        when the loss does not need them."""
        ...


def check_loss(name: str) -> None:
    """Raises `UserError` unless `name` is one of ours, or looks like one of the user's own."""
    if name not in POLICY_LOSSES and not is_own(name):
        raise UserError(
            f"loss={name!r} must be one of {', '.join(POLICY_LOSSES)}, or path/file.py:function"
        )


def aggregate_of(name: str, max_completion_tokens: int) -> Aggregate:
    """How the loss called `name` turns tokens into one number; one of the user's own does not say,
    and gets the mean over rollouts."""
    if name in ("dapo", "cispo"):
        return token_mean_weights
    if name == "dr_grpo":
        return partial(constant_weights, max_completion_tokens=max_completion_tokens)
    return rollout_mean_weights


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """A table of values for each policy loss; a run reads the one it uses."""

    espo: EspoConfig = field(default_factory=EspoConfig)
    gspo: GspoConfig = field(default_factory=GspoConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    dr_grpo: DrGrpoConfig = field(default_factory=DrGrpoConfig)
    dapo: DapoConfig = field(default_factory=DapoConfig)
    cispo: CispoConfig = field(default_factory=CispoConfig)

    own: dict[str, OwnValue] = field(default_factory=dict)
    """Values for the keyword parameters of a loss of one's own, checked by their annotations."""

    def needs_entropies(self, name: str) -> bool:
        """Whether a bound loss must see a minibatch's entropies: thresholds over all of it."""
        return name == "espo" and self.espo.scope == "batch"

    def choose(
        self, name: str, *, max_completion_tokens: int, terms: LossTerms = NO_TERMS
    ) -> BindLoss:
        """The loss called `name` and the terms beside it, to be bound to each minibatch.

        Args:
            name: one of `POLICY_LOSSES`, or `FILE.py:FUNCTION`.
            max_completion_tokens: the run's generation budget, a constant (Dr. GRPO).

        Raises:
            UserError: of a loss of one's own (`compass.train.own_loss`).
        """
        aggregate = aggregate_of(name, max_completion_tokens)
        if self.needs_entropies(name):
            return lambda entropies, topology: terms.beside(
                self._espo_by_batch(entropies, topology), aggregate
            )
        own = is_own(name)
        loss = open_own_loss(name, self.own) if own else self._named(name, max_completion_tokens)
        whole = terms.beside(loss, aggregate)
        return lambda entropies, topology: whole

    def _named(self, name: str, max_completion_tokens: int) -> Loss:
        match name:
            case "dr_grpo":
                return self.dr_grpo.bind(max_completion_tokens)
            case "espo":
                return self.espo.bind()
            case "gspo":
                return self.gspo.bind()
            case "grpo":
                return self.grpo.bind()
            case "dapo":
                return self.dapo.bind()
            case _:
                assert name == "cispo", "configs check the name"
                return self.cispo.bind()

    def _espo_by_batch(self, entropies: Sequence[Tensor], topology: Topology) -> Loss:
        shares = group_shares(self.espo.num_groups, self.espo.rho)
        return self.espo.bind(entropy_cuts(entropies, shares, topology))
