"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): the baseline that the stages replace.

Flat groups are left out of the update and other prompts are rolled out in their place. What the
flat groups cost is accounted for like everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from compass.distributed import Topology
from compass.errors import UserError
from compass.rl.sampler import PromptSampler
from compass.types import Prompt, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class DynamicSamplingConfig:
    """Rolling out further prompts until enough groups are useful."""

    max_rounds: int = 1
    """Rollout batches per step at most; 1 is no dynamic sampling. DAPO has no such cap, and hangs
    where everything is flat."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise UserError(f"dynamic_sampling.max_rounds={self.max_rounds} must be at least 1")


class RollOut(Protocol):
    """One round: the prompts of all ranks to the groups at home on this one."""

    def __call__(
        self, *, prompts: list[Prompt], seed: int, max_completion_tokens: int | None
    ) -> list[RolloutGroup]: ...


def sample_groups(
    sampler: PromptSampler, roll_out: RollOut, topology: Topology, *, max_rounds: int, seed: int
) -> tuple[list[RolloutGroup], int]:
    """This rank's groups of one step, and how many prompts the pre-filter skipped on all ranks.

    Rounds follow each other until all ranks together have as many groups that are not flat as a
    round has prompts, and end with `max_rounds`. Collective.
    """
    groups: list[RolloutGroup] = []
    num_skipped = 0
    for round_number in range(max_rounds):
        prompts = sampler.next()
        num_skipped += len(sampler.last_skipped)
        groups += roll_out(
            prompts=prompts,
            seed=seed * max_rounds + round_number,
            max_completion_tokens=sampler.max_completion_tokens,
        )
        useful = torch.tensor([sum(not group.is_flat for group in groups)])
        if int(topology.all_reduce_sum(useful)) >= len(prompts):
            break
    return groups, num_skipped
