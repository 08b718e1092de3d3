"""Who works on what: rollouts shared among ranks by predicted length, and the update's
microbatches balanced by cost (METHOD 7).

Every rank computes the same plan from the same numbers; nothing here depends on time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass.bins import longest_processing_time
from compass.types import Prompt

Balance = Literal["rollouts", "groups", "off"]
"""What is dealt to ranks: rollouts, a group's split where whole groups would leave ranks uneven;
whole groups; or as many whole groups to each rank, whatever their lengths."""

EVEN = 0.002
"""Ranks whose loads are this close, relative to their mean, are as good as even: further moves
would cost more than they bring. Ours."""


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
    the fullest rank to the emptiest while that brings them closer.

    Args:
        predicted: completion tokens of one sample of each prompt.
    """
    counts = (
        [
            [group_size * (r == p % world_size) for r in range(world_size)]
            for p in range(len(prompts))
        ]
        if balance == "off"
        else _longest_first_counts(predicted, group_size, world_size)
    )
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
            if (num := min(counts[p][fullest], max(1, round(gap / 2 / tokens)))) * tokens < gap
            and num > 0
        ]
        if not moves:
            return
        _, p, num = min(moves)
        counts[p][fullest] -= num
        counts[p][emptiest] += num
        loads[fullest] -= num * predicted[p]
        loads[emptiest] += num * predicted[p]


@dataclass(frozen=True, kw_only=True)
class MicrobatchPlan:
    """Which items each rank trains in each of its microbatches. Built by `plan_microbatches`."""

    by_rank: tuple[tuple[tuple[int, ...], ...], ...]
    """[rank][microbatch] indices of items; as many microbatches on every rank, dearest first, so
    that those which ranks work on at the same time cost alike."""
    slowest_cost: float
    """Cost of the dearest rank in each microbatch, summed: ranks wait for it in collectives."""
    mean_cost: float
    """Cost of all items over the number of ranks: what `slowest_cost` would be at best."""

    @property
    def ranks(self) -> dict[int, int]:
        """The rank of each item."""
        return {
            i: rank
            for rank, microbatches in enumerate(self.by_rank)
            for members in microbatches
            for i in members
        }


def plan_microbatches(
    sizes: Sequence[int],
    costs: Sequence[float],
    holders: Sequence[int],
    *,
    num_ranks: int,
    capacity: int,
) -> MicrobatchPlan:
    """Balance items over ranks by cost, and on each rank over microbatches.

    Items stay with their holders but for those whose move evens out the ranks. The number of
    microbatches is the least with which every rank finds room.

    Args:
        sizes: of each item, against the `capacity` of a microbatch; a larger item goes alone.
        costs: above 0.
    """
    members = _even_out(costs, holders, num_ranks)
    num_bins = 0
    while (bins := _cut(members, sizes, costs, capacity, num_bins)) is None:
        num_bins += 1
    by_microbatch = zip(*([sum(costs[i] for i in b) for b in rank] for rank in bins), strict=True)
    return MicrobatchPlan(
        by_rank=tuple(tuple(tuple(sorted(b)) for b in rank) for rank in bins),
        slowest_cost=sum(max(of_ranks) for of_ranks in by_microbatch),
        mean_cost=sum(costs) / num_ranks,
    )


def _cut(
    members: Sequence[Sequence[int]],
    sizes: Sequence[int],
    costs: Sequence[float],
    capacity: int,
    num_bins: int,
) -> list[list[list[int]]] | None:
    cut = []
    for of_rank in members:
        bins = longest_processing_time(of_rank, costs, sizes, capacity=capacity, num_bins=num_bins)
        if bins is None:
            return None
        cut.append(bins)
    return cut


def _even_out(costs: Sequence[float], holders: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Items of each rank, after moves and swaps between the dearest and the cheapest rank until
    they are even or neither helps."""
    # Of each rank, (cost, item) from the cheapest.
    ranks: list[list[tuple[float, int]]] = [[] for _ in range(num_ranks)]
    for i, (cost, holder) in enumerate(zip(costs, holders, strict=True)):
        insort(ranks[holder], (cost, i))
    loads = [sum(cost for cost, _ in rank) for rank in ranks]
    mean = sum(loads) / num_ranks
    while True:
        dearest = max(range(num_ranks), key=lambda r: (loads[r], -r))
        cheapest = min(range(num_ranks), key=lambda r: (loads[r], r))
        gap = loads[dearest] - loads[cheapest]
        if gap <= EVEN * mean:
            break
        given, taken = _best_swap(ranks[dearest], ranks[cheapest], gap)
        if given is None:
            break
        ranks[dearest].remove(given)
        insort(ranks[cheapest], given)
        if taken is not None:
            ranks[cheapest].remove(taken)
            insort(ranks[dearest], taken)
        moved = given[0] - (taken[0] if taken else 0.0)
        loads[dearest] -= moved
        loads[cheapest] += moved
    return [[i for _, i in rank] for rank in ranks]


Item = tuple[float, int]
"""Cost and index."""


def _best_swap(
    dear: Sequence[Item], cheap: Sequence[Item], gap: float
) -> tuple[Item | None, Item | None]:
    """What the dearer rank should give and take so that half the gap changes sides, or nearly.

    A plain move is preferred where it closes at least half of the gap: it is one sequence less to
    send. (None, None): nothing brings the two closer.
    """
    best: tuple[float, Item, Item | None] | None = None
    moved = _nearest(dear, gap / 2)
    if 0 < moved[0] < gap:
        best = (abs(moved[0] - gap / 2), moved, None)
        if best[0] <= gap / 4:
            return moved, None
    for taken in cheap:
        given = _nearest(dear, taken[0] + gap / 2)
        distance = abs(given[0] - taken[0] - gap / 2)
        if distance < (best[0] if best else gap / 2):
            best = (distance, given, taken)
    return (best[1], best[2]) if best else (None, None)


def _nearest(items: Sequence[Item], cost: float) -> Item:
    """The item whose cost is nearest; `items` are sorted and not empty."""
    at = bisect_left(items, (cost, -1))
    around = items[max(0, at - 1) : at + 1]
    return min(around, key=lambda item: abs(item[0] - cost))
