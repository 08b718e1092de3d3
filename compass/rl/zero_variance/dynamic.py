"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): the baseline that the stages replace.

Flat groups are left out of the update and other prompts are rolled out in their place. What the
flat groups cost is accounted for like everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


class SampledGroups(NamedTuple):
    """One step's groups. Built by `sample_groups`."""

    groups: list[RolloutGroup]
    """Those at home on this rank."""
    numbers: list[int]
    """Of each group's prompt among those of the step, counted over all ranks and rounds."""
    num_skipped: int
    """Prompts that the pre-filter skipped, on all ranks together."""


class RollOut(Protocol):
    """One round: the prompts of all ranks to the groups at home on this one."""

    def __call__(
        self, *, prompts: list[Prompt], seed: int, max_completion_tokens: int | None
    ) -> list[RolloutGroup]: ...


def sample_groups(
    sampler: PromptSampler, roll_out: RollOut, topology: Topology, *, max_rounds: int, seed: int
) -> SampledGroups:
    """Roll out one step.

    Rounds follow each other until all ranks together have as many groups that are not flat as a
    round has prompts, and end with `max_rounds`. Collective.
    """
    groups: list[RolloutGroup] = []
    numbers: list[int] = []
    num_prompts = num_skipped = 0
    for round_number in range(max_rounds):
        prompts = sampler.next()
        num_skipped += len(sampler.last_skipped)
        of_round = roll_out(
            prompts=prompts,
            seed=seed * max_rounds + round_number,
            max_completion_tokens=sampler.max_completion_tokens,
        )
        number_of = {prompt.id: num_prompts + i for i, prompt in enumerate(prompts)}
        groups += of_round
        numbers += [number_of[group.prompt.id] for group in of_round]
        num_prompts += len(prompts)
        useful = torch.tensor([sum(not group.is_flat for group in groups)])
        if int(topology.all_reduce_sum(useful)) >= len(prompts):
            break
    return SampledGroups(groups, numbers, num_skipped)
