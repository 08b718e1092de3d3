"""Weighted means that add up over microbatches, minibatches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compass.distributed import Topology


class Means:
    """Accumulates (sum, count) pairs under metric names.

    A mean over a batch that is split over microbatches and ranks is the sum of sums over the sum
    of counts; averaging averages would weigh short microbatches too much.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Add `total` (a sum over `count` things) under `name`."""
        sums = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = sums[0] + _number(total), sums[1] + _number(count)

    def add_values(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Add every element of `values` under `name`, or those where `where` is true."""
        if where is None:
            self.add(name, values.double().sum(), values.numel())
        else:  # not picked: how many they are is the device's to know
            self.add(name, torch.where(where, values.double(), 0.0).sum(), where.sum())

    def update(self, other: Means) -> None:
        """Add all of `other`."""
        for name, pair in other._sums.items():
            self.add(name, pair[0], pair[1])

    def reduce(self, topology: Topology) -> dict[str, float]:
        """The means over all ranks, the same on each. Collective; ranks may hold different names.

        A name whose count is 0 everywhere is left out: there is nothing to report.
        """
        names = sorted(set().union(*topology.all_gather_object(list(self._sums))))
        if not names:
            return {}
        numbers = [number for n in names for number in self._sums.get(n, (0.0, 0.0))]
        sums = topology.all_reduce_sum(_on_the_host(numbers)).view(-1, 2)
        return {
            name: (total / count).item()
            for name, (total, count) in zip(names, sums.cpu(), strict=True)
            if count != 0
        }


def _number(x: Tensor | float) -> Tensor | float:
    """In double precision; what a device computes stays there, as reading it means waiting."""
    if not isinstance(x, Tensor):
        return float(x)
    return x.detach().double() if x.device.type != "cpu" else x.item()


def _on_the_host(numbers: Sequence[Tensor | float]) -> Tensor:
    """[N] float64, in one read."""
    held = [number for number in numbers if isinstance(number, Tensor)]
    read = iter(torch.stack(held).tolist() if held else ())
    return torch.tensor(
        [next(read) if isinstance(number, Tensor) else number for number in numbers],
        dtype=torch.float64,
    )
