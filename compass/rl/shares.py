"""Who writes which rollouts: shared among ranks by predicted length (METHOD 7).

Every rank computes the same shares from the same numbers; nothing here depends on time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass.rl.balance import EVEN
from compass.types import Prompt

Balance = Literal["samples", "rollouts", "groups", "off"]
"""What is dealt to ranks: the samples of every group, as many to each, so that a wrong prediction
hits all alike; rollouts, a group's split only where whole groups would leave ranks uneven; whole
groups; or as many whole groups to each rank, whatever their lengths."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Consecutive samples of one prompt that one rank writes. Built by `share_rollouts`."""

    prompt: Prompt
    home: int
    """The rank that brings the group together, and writes what it grows by."""
    writer: int
    """The rank that writes these samples."""
    first_sample: int
    num_samples: int
    priority: int
    """Lower is written first."""


def share_rollouts(
    prompts: Sequence[Prompt],
    predicted: Sequence[float],
    *,
    group_size: int,
    world_size: int,
    balance: Balance,
    longest_first: bool = True,
) -> list[Share]:
    """Share `group_size` samples of every prompt among all ranks.

    Homes are dealt like cards. Under `rollouts` and `groups`, writers are chosen by the
    longest-processing-time rule on predicted tokens, and under `rollouts` samples then move from
    the fullest rank to the emptiest while that brings them closer. Under `samples` the rule deals
    what is left of each group after every rank has had as many.

    Args:
        predicted: completion tokens of one sample of each prompt.
    """
    if balance == "off":
        counts = [
            [group_size * (r == p % world_size) for r in range(world_size)]
            for p in range(len(prompts))
        ]
    elif balance == "samples":
        counts = _even_counts(predicted, group_size, world_size)
    else:
        counts = _longest_first_counts(predicted, group_size, world_size)
    if balance == "rollouts":
        _split(counts, predicted)
    shares = []
    for p, (prompt, tokens, of_prompt) in enumerate(zip(prompts, predicted, counts, strict=True)):
        home, first_sample = p % world_size, 0
        for writer in sorted(range(world_size), key=lambda r: (r != home, r)):
            if of_prompt[writer]:
                shares.append(
                    Share(
                        prompt=prompt,
                        home=home,
                        writer=writer,
                        first_sample=first_sample,
                        num_samples=of_prompt[writer],
                        priority=-round(tokens) if longest_first else 0,
                    )
                )
                first_sample += of_prompt[writer]
    return shares


def _longest_first_counts(
    predicted: Sequence[float], group_size: int, world_size: int
) -> list[list[int]]:
    """Samples of each prompt on each rank: whole groups, longest first to the emptiest rank."""
    loads = [0.0] * world_size
    counts = [[0] * world_size for _ in predicted]
    for p in sorted(range(len(predicted)), key=lambda p: (-predicted[p], p)):
        writer = min(range(world_size), key=lambda r: (loads[r], r != p % world_size, r))
        counts[p][writer] = group_size
        loads[writer] += group_size * predicted[p]
    return counts


def _even_counts(predicted: Sequence[float], group_size: int, world_size: int) -> list[list[int]]:
    """Samples of each prompt on each rank: as many on each, and what is left, longest first, one by
    one to the emptiest ranks."""
    loads = [0.0] * world_size
    counts = [[group_size // world_size] * world_size for _ in predicted]
    for p in sorted(range(len(predicted)), key=lambda p: (-predicted[p], p)):
        emptiest = sorted(range(world_size), key=lambda r: (loads[r], r != p % world_size, r))
        for writer in emptiest[: group_size % world_size]:
            counts[p][writer] += 1
            loads[writer] += predicted[p]
    return counts


def _split(counts: list[list[int]], predicted: Sequence[float]) -> None:
    """Move samples from the fullest to the emptiest rank until they are even or no move helps."""
    world_size = len(counts[0]) if counts else 0
    loads = [
        sum(c[r] * tokens for c, tokens in zip(counts, predicted, strict=True))
        for r in range(world_size)
    ]
    mean = sum(loads) / max(1, world_size)
    while loads:
        fullest = max(range(world_size), key=lambda r: (loads[r], -r))
        emptiest = min(range(world_size), key=lambda r: (loads[r], r))
        gap = loads[fullest] - loads[emptiest]
        if gap <= EVEN * mean:
            return
        moves = [
            (abs(num * tokens - gap / 2), p, num)
            for p, tokens in enumerate(predicted)
            if (num := min(counts[p][fullest], max(1, round(gap / 2 / tokens)))) * tokens
            <= (1 - EVEN) * gap
            and num > 0
        ]
        if not moves:
            return
        _, p, num = min(moves)
        counts[p][fullest] -= num
        counts[p][emptiest] += num
        loads[fullest] -= num * predicted[p]
        loads[emptiest] += num * predicted[p]
