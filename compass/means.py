"""Weighted means that add up over microbatches, minibatches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from compass.distributed import Topology


class Means:
    """Accumulates (sum, count) pairs under metric names.

    A mean over a batch that is split over microbatches and ranks is the sum of sums over the sum
    of counts; averaging averages would weigh short microbatches too much.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add `total` (a sum over `count` things) under `name`."""
        pair = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in (total, count)]
        )
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_values(self, name: str, values: Tensor) -> None:
        """Add every element of `values` under `name`."""
        self.add(name, values.double().sum(), values.numel())

    def update(self, other: Means) -> None:
        """Add all of `other`."""
        for name, pair in other._sums.items():
            self.add(name, pair[0], pair[1])

    def reduce(self, topology: Topology) -> dict[str, float]:
        """The means over all ranks, the same on each. Collective; ranks may hold different names.

        A name whose count is 0 everywhere is left out: there is nothing to report.
        """
        names = sorted(set().union(*topology.all_gather_object(list(self._sums))))
        zero = torch.zeros(2, dtype=torch.float64)
        if not names:
            return {}
        sums = topology.all_reduce_sum(torch.stack([self._sums.get(n, zero) for n in names]))
        return {
            name: (total / count).item()
            for name, (total, count) in zip(names, sums.cpu(), strict=True)
            if count != 0
        }
