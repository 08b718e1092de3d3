"""Choices sorted by expert, in one launch: a counting sort with a program for each expert.

PyTorch's sort of 64-bit keys takes half a dozen launches, and turning its order into places and
ends of experts as many again.

Shape legend: N choices, E experts.
"""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_AT_ONCE = 4096
"""Choices of a tile."""


def sort_by_expert(expert_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """A stable sort.

    Args:
        expert_N: ids in [0, num_experts), of any integer type.

    Returns:
        order_N: int64, the choice in each sorted place.
        place_N: int64, the sorted place of each choice.
        ends_E: int32, behind which place the choices of each expert end.
    """
    order_N = torch.empty(len(expert_N), dtype=torch.int64, device=expert_N.device)
    place_N = torch.empty_like(order_N)
    ends_E = torch.empty(num_experts, dtype=torch.int32, device=expert_N.device)
    _sort[(num_experts,)](
        expert_N.contiguous(),
        order_N,
        place_N,
        ends_E,
        len(expert_N),
        TILE=min(_MOST_AT_ONCE, max(16, triton.next_power_of_2(len(expert_N)))),
        num_warps=4,
    )
    return order_N, place_N, ends_E


@triton.jit
def _sort(expert_ptr, order_ptr, place_ptr, ends_ptr, N, TILE: tl.constexpr):
    """The choices of one expert stand behind those of all before it."""
    e = tl.program_id(0)
    before_T = tl.zeros((TILE,), tl.int32)
    for first in range(0, N, TILE):
        n_T = first + tl.arange(0, TILE)
        expert_T = tl.load(expert_ptr + n_T, mask=n_T < N, other=e)
        before_T += (expert_T < e).to(tl.int32)
    place = tl.sum(before_T, 0)
    for first in range(0, N, TILE):
        n_T = first + tl.arange(0, TILE)
        live_T = n_T < N
        mine_T = (tl.load(expert_ptr + n_T, mask=live_T, other=-1) == e) & live_T
        count_T = mine_T.to(tl.int32)
        place_T = place + tl.cumsum(count_T, 0) - 1
        tl.store(order_ptr + place_T, n_T.to(tl.int64), mask=mine_T)
        tl.store(place_ptr + n_T, place_T.to(tl.int64), mask=mine_T)
        place += tl.sum(count_T, 0)
    tl.store(ends_ptr + e, place)
