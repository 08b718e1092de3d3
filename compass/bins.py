"""Packing items into as few bins as a simple rule finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush


def first_fit_decreasing(
    indices: Iterable[int], sizes: Sequence[int], capacity: int
) -> list[list[int]]:
    """Deal `indices` into bins whose sizes sum to at most `capacity`: largest first, each into the
    first bin with room. An item above the capacity is alone in its bin."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(indices, key=lambda i: -sizes[i]):
        fit = next((b for b, left in enumerate(room) if left >= sizes[i]), None)
        if fit is None:
            bins.append([])
            room.append(capacity)
            fit = len(bins) - 1
        bins[fit].append(i)
        room[fit] -= sizes[i]
    return bins


def longest_processing_time(
    indices: Iterable[int],
    costs: Sequence[float],
    sizes: Sequence[int],
    *,
    capacity: int,
    num_bins: int,
) -> list[list[int]] | None:
    """Deal `indices` into `num_bins` bins of like cost, whose sizes sum to at most `capacity`:
    dearest first, each into the cheapest bin with room (Graham's longest-processing-time rule).

    An item above the capacity is alone in its bin. Bins come dearest first; some are empty when
    there are more bins than items. None: the rule finds no room for some item.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    room = [capacity] * num_bins
    loads = [(0.0, b) for b in range(num_bins)]  # a heap
    for i in sorted(indices, key=lambda i: (-costs[i], i)):
        too_full = []
        while loads:
            load, b = heappop(loads)
            if room[b] >= sizes[i] or not bins[b]:
                bins[b].append(i)
                room[b] -= sizes[i]
                heappush(loads, (load + costs[i], b))
                break
            too_full.append((load, b))
        else:
            return None
        for entry in too_full:
            heappush(loads, entry)
    return [bins[b] for _, b in sorted(loads, key=lambda entry: (-entry[0], entry[1]))]
