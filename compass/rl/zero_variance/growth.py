"""What the groups of one rollout may grow to, and what their rollouts then weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compass.rl.zero_variance.expand import (
    ExpandConfig,
    ExpandWeight,
    Ladder,
    gated_ladder,
    share_ladders,
)
from compass.rl.zero_variance.history import PromptHistory
from compass.rl.zero_variance.weight import group_weight
from compass.types import Prompt, RolloutGroup


class Growth:
    """Settled before the rollout, the same on every rank.

    Args:
        ladders: by prompt id; a group without one keeps its size.
        weight: of the rollouts of groups that may grow.
    """

    def __init__(self, ladders: Mapping[str, Ladder], weight: ExpandWeight = "none") -> None:
        self.ladders = ladders
        self._weight = weight

    @property
    def is_possible(self) -> bool:
        """Whether any group may grow at all."""
        return any(ladder.largest > ladder.base for ladder in self.ladders.values())

    def further(self, group: RolloutGroup) -> int:
        """How many further rollouts a fully scored group should get; 0 when it is complete."""
        current = len(group.rollouts)
        return self._ladder(group).next_size(group.valid_verdicts, current) - current

    def weighed(self, group: RolloutGroup) -> RolloutGroup:
        """The complete group, with what its rollouts weigh."""
        weight, count = group_weight(group, self._ladder(group), self._weight)
        return replace(group, weight=weight, count=count)

    def _ladder(self, group: RolloutGroup) -> Ladder:
        return self.ladders.get(group.prompt.id, Ladder(base=len(group.rollouts)))


def plan_growth(
    history: PromptHistory,
    prompts: Sequence[Prompt],
    cfg: ExpandConfig,
    *,
    group_size: int,
    expected_tokens: Callable[[Prompt], float],
) -> Growth:
    """What the groups of these prompts may grow to, from history alone.

    Args:
        prompts: of one rollout, on all ranks together.
        expected_tokens: of one completion of a prompt.
    """
    prospects = history.prospects()
    evidence = [history.evidence(prompt.id) for prompt in prompts]
    ladders = [
        gated_ladder(
            group_size,
            cfg,
            evidence=of_prompt,
            tokens_per_rollout=expected_tokens(prompt),
            prospects=prospects,
        )
        for prompt, of_prompt in zip(prompts, evidence, strict=True)
    ]
    shared = share_ladders(ladders, evidence, history.population, max_added=cfg.max_added)
    ids = (prompt.id for prompt in prompts)
    return Growth(dict(zip(ids, shared, strict=True)), cfg.weight)


PlanGrowth = Callable[[Sequence[Prompt]], Growth]
"""The prompts of all ranks together -> what their groups may do."""
