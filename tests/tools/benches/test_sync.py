"""tools/bench.py sync: how it counts bytes, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benches.sync import written_bytes


def test_bytes_are_counted_where_they_are_written() -> None:
    x, y = torch.zeros(10), torch.ones(10)
    two, index = torch.zeros(2), torch.tensor([1, 2])
    assert written_bytes(lambda: x.copy_(y)) == 40
    assert written_bytes(lambda: x.view(2, 5).t()[0]) == 0  # views
    assert written_bytes(lambda: x + y) == 40
    assert written_bytes(lambda: x.double()) == 80
    assert written_bytes(lambda: torch._foreach_add_([x, y], 1.0)) == 80
    assert written_bytes(lambda: torch.index_select(x, 0, index, out=two)) == 8
    assert written_bytes(lambda: torch.empty(10)) == 0


def test_direct_copies_nothing_and_a_state_dict_everything(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    figures = figures_of("sync --spec debug --repeats 2")
    assert figures["bytes_direct"] == 0
    assert figures["bytes_state_dict"] == figures["weight_bytes"]
    assert figures["bytes_received_fp8"] == 0  # one rank has all the rows itself
    assert figures["bytes_fp8"] > 0
    assert set(figures["wall_seconds"]) == {"direct", "fp8", "state dict"}
    assert {len(seconds) for seconds in figures["wall_seconds"].values()} == {2}
