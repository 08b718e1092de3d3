"""Packing items into as few bins as a simple rule finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
