"""The update's work balanced over ranks and microbatches by cost.

Every rank computes the same plan from the same numbers; nothing here depends on time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compass.bins import longest_processing_time

EVEN = 0.002
"""Loads this close, relative to their mean, are as good as even, and a move must close this share
of a gap: others would cost more than they bring, or trade places for ever. Ours."""

TOLERATED = 1.01
"""Imbalance up to which rollouts stay with those who wrote them, but for single moves. Beyond,
everything is dealt anew if that is better. Ours."""


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

    Items stay with their holders but for those whose move evens out the ranks. Where that leaves
    a rank with few large items, which do not divide into even microbatches, all items are dealt
    anew. The number of microbatches is the least with which the rule finds room on every rank.

    Args:
        sizes: of each item, against the `capacity` of a microbatch; a larger item goes alone.
        costs: above 0.
    """
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    for i, holder in enumerate(holders):
        held[holder].append(i)
    stayed = _plan(_cut_alike(_even_out(held, costs), sizes, costs, capacity), costs)
    if stayed.slowest_cost <= TOLERATED * stayed.mean_cost:
        return stayed
    dealt = _plan(_deal_anew(sizes, costs, held, capacity), costs)
    return dealt if dealt.slowest_cost < stayed.slowest_cost else stayed


def _plan(bins: Sequence[Sequence[Sequence[int]]], costs: Sequence[float]) -> MicrobatchPlan:
    by_microbatch = zip(*([_total(costs, b) for b in rank] for rank in bins), strict=True)
    return MicrobatchPlan(
        by_rank=tuple(tuple(tuple(sorted(b)) for b in rank) for rank in bins),
        slowest_cost=sum(max(of_ranks) for of_ranks in by_microbatch),
        mean_cost=sum(costs) / len(bins),
    )


def _deal_anew(
    sizes: Sequence[int], costs: Sequence[float], held: Sequence[Sequence[int]], capacity: int
) -> list[list[list[int]]]:
    """All items in bins of like cost, a bin for each rank and microbatch; those that are worked on
    at the same time are neighbours in cost. Of these, each rank gets one of which it holds much."""
    num_ranks = len(held)
    filled = sum(min(size, capacity) for size in sizes)
    num_bins = -(-filled // (capacity * num_ranks)) * num_ranks
    while (bins := _cut(range(len(sizes)), sizes, costs, capacity, num_bins)) is None:
        num_bins += num_ranks
    ranks: list[list[list[int]]] = [[] for _ in held]
    own = [frozenset(of_rank) for of_rank in held]
    for first in range(0, num_bins, num_ranks):
        at_once = bins[first : first + num_ranks]
        matches = sorted(
            (-sum(sizes[i] for i in b if i in own[r]), r, at)
            for at, b in enumerate(at_once)
            for r in range(num_ranks)
        )
        open_ranks, open_bins = set(range(num_ranks)), set(range(num_ranks))
        for _, r, at in matches:
            if r in open_ranks and at in open_bins:
                ranks[r].append(at_once[at])
                open_ranks.remove(r)
                open_bins.remove(at)
    return ranks


def _total(costs: Sequence[float], members: Iterable[int]) -> float:
    return sum(costs[i] for i in members)


def _cut_alike(
    members: Sequence[Sequence[int]], sizes: Sequence[int], costs: Sequence[float], capacity: int
) -> list[list[list[int]]]:
    """Each rank's items in the least number of microbatches in which every rank finds room."""
    filled = [sum(min(sizes[i], capacity) for i in of_rank) for of_rank in members]
    num_bins = -(-max(filled) // capacity)
    while True:
        bins = [_cut(of_rank, sizes, costs, capacity, num_bins) for of_rank in members]
        found = [of_rank for of_rank in bins if of_rank is not None]
        if len(found) == len(members):
            return found
        num_bins += 1


def _cut(
    members: Sequence[int],
    sizes: Sequence[int],
    costs: Sequence[float],
    capacity: int,
    num_bins: int,
) -> list[list[int]] | None:
    """One rank's items in so many microbatches, dearest first; None: no room."""
    bins = longest_processing_time(members, costs, sizes, capacity=capacity, num_bins=num_bins)
    if bins is None:
        return None
    evened = _even_out(bins, costs)
    fits = all(len(b) == 1 or sum(sizes[i] for i in b) <= capacity for b in evened)
    return sorted(evened if fits else bins, key=lambda b: (-sum(costs[i] for i in b), b))


def _even_out(bins: Sequence[Sequence[int]], costs: Sequence[float]) -> list[list[int]]:
    """The bins after moves and swaps of items between the dearest and the cheapest, until they are
    even or neither helps."""
    # Of each bin, (cost, item) from the cheapest.
    items = [sorted((costs[i], i) for i in b) for b in bins]
    loads = [sum(cost for cost, _ in b) for b in items]
    while loads:
        dearest = max(range(len(loads)), key=lambda b: (loads[b], -b))
        cheapest = min(range(len(loads)), key=lambda b: (loads[b], b))
        gap = loads[dearest] - loads[cheapest]
        if gap <= EVEN * sum(loads) / len(loads):
            break
        given, taken = _best_swap(items[dearest], items[cheapest], gap)
        if given is None:
            break
        items[dearest].remove(given)
        insort(items[cheapest], given)
        if taken is not None:
            items[cheapest].remove(taken)
            insort(items[dearest], taken)
        moved = given[0] - (taken[0] if taken else 0.0)
        loads[dearest] -= moved
        loads[cheapest] += moved
    return [[i for _, i in b] for b in items]


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
    if moved[0] <= (1 - EVEN) * gap:
        best = (abs(moved[0] - gap / 2), moved, None)
        if best[0] <= gap / 4:
            return moved, None
    for taken in cheap:
        given = _nearest(dear, taken[0] + gap / 2)
        distance = abs(given[0] - taken[0] - gap / 2)
        if distance < (best[0] if best else (0.5 - EVEN) * gap):
            best = (distance, given, taken)
    return (best[1], best[2]) if best else (None, None)


def _nearest(items: Sequence[Item], cost: float) -> Item:
    """The item whose cost is nearest; `items` are sorted and not empty."""
    at = bisect_left(items, (cost, -1))
    around = items[max(0, at - 1) : at + 1]
    return min(around, key=lambda item: abs(item[0] - cost))
