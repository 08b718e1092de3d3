"""Which policy loss a run uses, with the values of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from compass.distributed import Topology
from compass.errors import UserError
from compass.own import OwnValue, is_own
from compass.train.espo import EspoConfig, entropy_cuts, group_shares
from compass.train.loss import CispoConfig, DapoConfig, DrGrpoConfig, GrpoConfig, GspoConfig, Loss
from compass.train.own_loss import open_own_loss

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

    def choose(self, name: str, *, max_completion_tokens: int) -> BindLoss:
        """The loss called `name`, to be bound to each minibatch.

        Args:
            name: one of `POLICY_LOSSES`, or `FILE.py:FUNCTION`.
            max_completion_tokens: the run's generation budget, a constant (Dr. GRPO).

        Raises:
            UserError: of a loss of one's own (`compass.train.own_loss`).
        """
        if self.needs_entropies(name):
            return self._espo_by_batch
        loss = (
            open_own_loss(name, self.own)
            if is_own(name)
            else self._named(name, max_completion_tokens)
        )
        return lambda entropies, topology: loss

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
