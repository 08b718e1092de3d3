"""Choices of experts: sorted, and what was made of them summed up again. One kernel each on CUDA.

Shape legend: T tokens, K experts per token, N = T * K choices, E experts, R = N rows sorted by
expert, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compass.models import kernels
from compass.models.layers.rows import pick_rows


def sort_choices(expert_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """A stable sort of choices by expert.

    Returns:
        order_N: int64, the choice in each sorted place.
        place_N: int64, the sorted place of each choice.
        ends_E: int32, behind which place the choices of each expert end.
    """
    if expert_N.device.type in kernels.DEVICES:
        from compass.models.kernels.sort import sort_by_expert

        return sort_by_expert(expert_N, num_experts)
    sorted_N, order_N = expert_N.sort(stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    expert_E = torch.arange(num_experts, dtype=expert_N.dtype, device=expert_N.device)
    return order_N, place_N, torch.searchsorted(sorted_N, expert_E, right=True, out_int32=True)


def sum_choices(rows_RD: Tensor, order_N: Tensor, place_N: Tensor, gates_TK: Tensor) -> Tensor:
    """[T, D] in the dtype of the rows: sum over k of gates[t, k] * rows[place of (t, k)], in
    float32."""
    if rows_RD.device.type in kernels.DEVICES:
        from compass.models.kernels.combine import combine

        return combine(rows_RD, place_N.view(gates_TK.shape), gates_TK)
    rows_TKD = pick_rows(rows_RD, place_N, order_N).unflatten(0, gates_TK.shape)
    # Gates are float32, and so is the product.
    return (rows_TKD * gates_TK.unsqueeze(-1)).sum(dim=1).to(rows_RD.dtype)


def sum_first_choices(rows_RD: Tensor, place_N: Tensor, gates_TK: Tensor, end: Tensor) -> Tensor:
    """[T, D] float32: `sum_choices` over rows before `end` ([1]) alone. Those behind it can hold
    anything, NaN included. Without a gradient."""
    place_TK = place_N.view(gates_TK.shape)
    if rows_RD.device.type in kernels.DEVICES:
        from compass.models.kernels.combine import combine

        return combine(rows_RD, place_TK, gates_TK, end)
    rows_TKD = rows_RD.index_select(0, place_N).unflatten(0, gates_TK.shape)
    rows_TKD.masked_fill_((place_TK >= end).unsqueeze(-1), 0)
    return (rows_TKD * gates_TK.unsqueeze(-1)).sum(dim=1)
