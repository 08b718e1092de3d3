"""Length-aware scheduling of rollouts: predict, start the long ones first, share
evenly, and see afterwards how good the prediction was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compass.distributed import Topology
from compass.errors import UserError
from compass.means import Means
from compass.rl.pack import StayWith
from compass.rl.placement.length import GroupLengths, LengthHistory
from compass.rl.placement.shares import Balance, Share, share_rollouts
from compass.types import Prompt, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Who writes which rollouts, in which order and beside which others. No completion depends on
    it, up to the rounding of matrix products of another size."""

    balance: Balance = "samples"
    """What is shared among ranks: as many `samples` of each group, which wrong predictions hurt
    little. With `queue` ranks take parts of groups from one queue whenever they have room: fastest
    on many ranks, but which rank writes what then depends on time, and with it the last bits of
    log-probabilities."""
    longest_first: bool = True
    """Start the prompts with the longest predicted completions first, so that none of them is
    left over when the others are done."""
    quantile: float = 0.99
    """Which quantile of a prompt's length to plan for. High, because one long completion begun late
    costs more than many short ones begun early save, and so that a prompt of which little is known
    comes early. Ours, from tools/simulate.py."""
    deterministic: bool = False
    """Let groups grow together, once everything else is written and scored on all ranks, instead of
    each as its last verdict comes. Then the bits of a rollout do not depend on how long verifiers
    took; the price is that ranks wait at the end of every rung."""

    def __post_init__(self) -> None:
        if self.deterministic and self.balance == "queue":
            raise UserError(
                "schedule.deterministic=true together with schedule.balance=queue, where it "
                "depends on time which rank writes what; use samples"
            )
        if not 0 < self.quantile < 1:
            raise UserError(f"schedule.quantile={self.quantile} must be above 0 and below 1")


class RolloutSchedule:
    """Shares out rollouts by the lengths of earlier ones.

    Args:
        max_completion_tokens: what is predicted before anything was written.
    """

    def __init__(
        self, cfg: ScheduleConfig, topology: Topology, *, max_completion_tokens: int
    ) -> None:
        self.lengths = LengthHistory()
        self._cfg = cfg
        self._topology = topology
        self._limit = max_completion_tokens

    def share(self, prompts: Sequence[Prompt], group_size: int) -> list[Share]:
        """Who writes the `group_size` samples of each prompt. The same on every rank."""
        return share_rollouts(
            prompts,
            [self._predict(prompt, self._cfg.quantile) for prompt in prompts],
            group_size=group_size,
            world_size=self._topology.world_size,
            balance=self._cfg.balance,
            longest_first=self._cfg.longest_first,
        )

    def expected_tokens(self, prompt: Prompt) -> float:
        """The mean of the completion tokens of one sample, from earlier ones."""
        mean = self.lengths.mean(prompt.id, prompt.domain)
        return min(float(self._limit), self._limit if mean is None else mean)

    @property
    def stay_with(self) -> StayWith:
        """What `pack` is to keep to, so that an update does not depend on time."""
        return "homes" if self._cfg.balance == "queue" else "writers"

    def account(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Close a step: how far the predictions were off, and what there is to learn from this
        rank's groups and those of the others. Collective.

        `sched/length_mae` is the mean of |median predicted - tokens written| over all rollouts.
        """
        errors = Means()
        for group in groups:
            median = self._predict(group.prompt, 0.5)
            for rollout in group.rollouts:
                errors.add("sched/length_mae", abs(median - rollout.num_completion_tokens))
        mine = [
            GroupLengths(
                prompt_id=group.prompt.id,
                domain=group.prompt.domain,
                num_tokens=tuple(r.num_completion_tokens for r in group.rollouts),
            )
            for group in groups
        ]
        self.lengths.merge(self._topology.all_gather_object(mine))
        return errors.reduce(self._topology)

    def state_dict(self) -> dict[str, Any]:
        """Lengths so far; JSON values."""
        return self.lengths.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.lengths.load_state_dict(state)

    def _predict(self, prompt: Prompt, quantile: float) -> float:
        predicted = self.lengths.predict(prompt.id, prompt.domain, quantile=quantile)
        return min(float(self._limit), self._limit if predicted is None else predicted)
