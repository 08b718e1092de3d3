"""Dynamic sampling rolls out further prompts until enough groups are useful, and always ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.rl.sampler import PromptSampler
from compass.rl.zero_variance.dynamic import sample_groups
from compass.types import Prompt, RolloutGroup
from tests.distributed_run import run_ranks
from tests.rl.zero_variance.test_stages import group

PER_STEP = 4


class RollOut:
    """Rounds whose groups differ or not as told, and what they were called with."""

    def __init__(self, useful_by_round: list[int]) -> None:
        self.useful_by_round = useful_by_round
        self.seeds: list[int] = []
        self.prompts: list[str] = []

    def __call__(
        self, *, prompts: list[Prompt], seed: int, max_completion_tokens: int | None
    ) -> list[RolloutGroup]:
        useful = self.useful_by_round[len(self.seeds)]
        self.seeds.append(seed)
        self.prompts += [prompt.id for prompt in prompts]
        return [
            group(prompt.id, [1.0, 0.0] if i < useful else [0.0, 0.0])
            for i, prompt in enumerate(prompts)
        ]


def sampler() -> PromptSampler:
    prompts = [Prompt(id=str(i), messages=()) for i in range(64)]
    return PromptSampler(prompts, num_prompts_per_step=PER_STEP, seed=0)


@pytest.mark.parametrize(
    ("useful_by_round", "max_rounds", "rounds"),
    [
        ([4], 1, 1),
        ([0], 1, 1),  # one round is no dynamic sampling
        ([4, 4], 5, 1),
        ([1, 2, 1, 4], 5, 3),
        ([0, 0, 0, 0, 0], 5, 5),  # everything is flat: the cap ends it
    ],
)
def test_rounds_end_with_enough_useful_groups_or_with_the_cap(
    alone: Topology, useful_by_round: list[int], max_rounds: int, rounds: int
) -> None:
    roll_out = RollOut(useful_by_round)
    groups, numbers, num_skipped = sample_groups(
        sampler(), roll_out, alone, max_rounds=max_rounds, seed=3
    )
    assert len(roll_out.seeds) == len(set(roll_out.seeds)) == rounds
    assert [g.prompt.id for g in groups] == roll_out.prompts
    assert len(set(roll_out.prompts)) == rounds * PER_STEP
    assert numbers == list(range(rounds * PER_STEP))
    assert num_skipped == 0


def test_no_two_rounds_of_different_steps_share_a_seed(alone: Topology) -> None:
    seeds: list[int] = []
    for step in range(5):
        roll_out = RollOut([0, 0, 0])
        sample_groups(sampler(), roll_out, alone, max_rounds=3, seed=step)
        seeds += roll_out.seeds
    assert len(set(seeds)) == 15


def on_a_rank(rank: int) -> tuple[int, list[str]]:
    topology = build_topology(rank, 2, device=torch.device("cpu"))
    # Rank 0's groups are useful, rank 1's never are: together it takes two rounds.
    roll_out = RollOut([2, 2, 2] if rank == 0 else [0, 0, 0])
    sample_groups(sampler(), roll_out, topology, max_rounds=3, seed=0)
    return len(roll_out.seeds), roll_out.prompts


def test_a_group_keeps_its_prompts_number_wherever_it_is_at_home(alone: Topology) -> None:
    """Here those of a round come back in reverse, and the second prompt's home is elsewhere."""
    whole = RollOut([0, 0])

    def at_home(**asked: Any) -> list[RolloutGroup]:
        groups = whole(**asked)
        return [groups[3], groups[2], groups[0]]

    groups, numbers, _ = sample_groups(sampler(), at_home, alone, max_rounds=2, seed=0)
    assert numbers == [3, 2, 0, 7, 6, 4]
    assert [whole.prompts[number] for number in numbers] == [g.prompt.id for g in groups]


def test_ranks_count_useful_groups_together_and_see_all_prompts(tmp_path: Path) -> None:
    (first_rounds, first), (second_rounds, second) = run_ranks(on_a_rank, tmp_path, 2)
    assert first_rounds == second_rounds == 2
    assert first == second
    assert len(set(first)) == 2 * PER_STEP
