"""Which policy loss a run uses, with the values of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from compass.distributed import Topology
from compass.train.espo import EspoConfig, entropy_cuts, group_shares
from compass.train.loss import CispoConfig, DapoConfig, DrGrpoConfig, GrpoConfig, GspoConfig, Loss

PolicyLoss = Literal["espo", "gspo", "grpo", "dr_grpo", "dapo", "cispo"]


@dataclass(frozen=True, kw_only=True)
class PolicyLossConfig:
    """A table of values for each policy loss; a run reads the one it uses."""

    espo: EspoConfig = field(default_factory=EspoConfig)
    gspo: GspoConfig = field(default_factory=GspoConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    dr_grpo: DrGrpoConfig = field(default_factory=DrGrpoConfig)
    dapo: DapoConfig = field(default_factory=DapoConfig)
    cispo: CispoConfig = field(default_factory=CispoConfig)

    def needs_entropies(self, name: PolicyLoss) -> bool:
        """Whether `bind` must see a minibatch's entropies: thresholds over the whole minibatch."""
        return name == "espo" and self.espo.scope == "batch"

    def bind(
        self,
        name: PolicyLoss,
        entropies: Sequence[Tensor],
        topology: Topology,
        *,
        max_completion_tokens: int,
    ) -> Loss:
        """The loss called `name`, for one minibatch. Collective.

        Args:
            entropies: of this rank's trained tokens under the old policy, in any partition; none
                when the loss does not need them.
            max_completion_tokens: the run's generation budget, a constant (Dr. GRPO).
        """
        match name:
            case "espo" if self.espo.scope == "batch":
                shares = group_shares(self.espo.num_groups, self.espo.rho)
                return self.espo.bind(entropy_cuts(entropies, shares, topology))
            case "espo":
                return self.espo.bind()
            case "dr_grpo":
                return self.dr_grpo.bind(max_completion_tokens)
            case "gspo":
                return self.gspo.bind()
            case "grpo":
                return self.grpo.bind()
            case "dapo":
                return self.dapo.bind()
            case "cispo":
                return self.cispo.bind()
