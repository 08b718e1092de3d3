"""Who writes which rollouts: shared among ranks by predicted length.

Every rank computes the same shares from the same numbers; nothing here depends on time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass.types import Prompt

Balance = Literal["queue", "samples"]
"""What is dealt to ranks: nothing, they take parts of groups from one queue as they find room; or
the samples of every group, as many to each, so that a wrong prediction hits all alike."""

QUEUE_PARTS = 4
"""Parts of a group in the queue, at most: more of them even ranks out better, but every rank that
takes one computes the prompt. Ours, from tools/simulate.py."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Consecutive samples of one prompt that one rank writes. Built by `share_rollouts`."""

    prompt: Prompt
    home: int
    """The rank that brings the group together, and writes what it grows by."""
    writer: int | None
    """The rank that writes these samples; None: whichever takes them first."""
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

    Homes are dealt like cards. Under `queue` nobody is chosen to write. Under `samples` the
    longest-processing-time rule on predicted tokens deals what is left of each group after every
    rank has had as many.

    Args:
        predicted: completion tokens of one sample of each prompt.
    """
    counts: list[list[tuple[int | None, int]]]
    if balance == "queue":
        part = -(-group_size // QUEUE_PARTS)
        sizes = [min(part, group_size - first) for first in range(0, group_size, part)]
        counts = [[(None, size) for size in sizes] for _ in prompts]
    else:
        by_rank = _even_counts(predicted, group_size, world_size)
        counts = [_home_first(of_prompt, p % world_size) for p, of_prompt in enumerate(by_rank)]
    shares = []
    for p, (prompt, tokens, of_prompt) in enumerate(zip(prompts, predicted, counts, strict=True)):
        first_sample = 0
        for writer, num_samples in of_prompt:
            shares.append(
                Share(
                    prompt=prompt,
                    home=p % world_size,
                    writer=writer,
                    first_sample=first_sample,
                    num_samples=num_samples,
                    priority=-round(tokens) if longest_first else 0,
                )
            )
            first_sample += num_samples
    return shares


def whole_groups(prompts: Sequence[Prompt], group_size: int, *, world_size: int) -> list[Share]:
    """Every group written at home, in the prompts' order: where nothing is known of lengths and
    each prompt should be computed once."""
    return [
        Share(
            prompt=prompt,
            home=p % world_size,
            writer=p % world_size,
            first_sample=0,
            num_samples=group_size,
            priority=0,
        )
        for p, prompt in enumerate(prompts)
    ]


def deal_first(
    sizes: Sequence[int], *, num_seats: int, world_size: int
) -> tuple[list[list[int]], int]:
    """What ranks take from a queue before any has written: items like cards, until each has
    `num_seats` samples to write or more. Were the first rank to fill its seats at once, it would
    have all of the longest.

    Args:
        sizes: samples of each item, in the queue's order.

    Returns:
        Items of each rank, and how many were dealt.
    """
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    room = [num_seats] * world_size
    num_dealt = 0
    while num_dealt < len(sizes) and max(room) > 0:
        for r in range(world_size):
            if room[r] > 0 and num_dealt < len(sizes):
                ranks[r].append(num_dealt)
                room[r] -= sizes[num_dealt]
                num_dealt += 1
    return ranks, num_dealt


def _home_first(of_prompt: Sequence[int], home: int) -> list[tuple[int | None, int]]:
    """(writer, samples) of each rank that writes any."""
    ranks = sorted(range(len(of_prompt)), key=lambda r: (r != home, r))
    return [(r, of_prompt[r]) for r in ranks if of_prompt[r]]


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
