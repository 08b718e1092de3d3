"""Exchanges of a fixed size give every row what its experts say of it, and nothing else.

Shape legend: W ranks, B rows of each, D model width, E experts, K experts per row.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from compass.models.lockstep import LockstepDispatcher
from tests.distributed_run import run_ranks
from tests.tiny_batch import random_routes

W, B, D, E, K = 2, 5, 8, 6, 2


def rows_of(rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(rank)
    x_BD = torch.randn(B, D, generator=noise).to(dtype)
    return x_BD, torch.rand(B, K, generator=noise)


CASES = {
    "any experts": lambda rank: random_routes(B, 1, K, E, seed=rank)[:, 0],
    "all on one rank": lambda rank: torch.tensor([[4, 3]] * B),
    "in pairs over ranks": lambda rank: torch.tensor([[2, 3]] * B),
}
"""The experts of each row, by rank."""


def expert(rows_RD: Tensor, number: int) -> Tensor:
    """What an expert makes of rows: exact in any order and any batch."""
    return rows_RD * (number + 1) + number


def local_experts(rows_RD: Tensor, ends_e: Tensor, first: int) -> Tensor:
    """As a grouped product: rows behind the last end hold what was there before, at worst."""
    out_RD = torch.full_like(rows_RD, torch.nan)
    start = 0
    for i, end in enumerate(ends_e.tolist()):
        out_RD[start:end] = expert(rows_RD[start:end], first + i)
        start = end
    return out_RD


def _rank(rank: int) -> dict:
    report = {}
    for name, routes in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            dispatcher = LockstepDispatcher(dist.group.WORLD, E)
            x_BD, gates_BK = rows_of(rank, dtype)
            rows, ends_e, way_back = dispatcher.dispatch(x_BD, gates_BK, routes(rank))
            assert ends_e.dtype == torch.int32
            out_BD = dispatcher.combine(local_experts(rows, ends_e, rank * E // W), way_back)
            report[name, dtype] = out_BD
    return report


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    return run_ranks(_rank, tmp_path_factory.mktemp("ranks"), W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_row_gets_the_sum_over_its_experts(case, dtype, reports) -> None:
    for rank, report in enumerate(reports):
        x_BD, gates_BK = rows_of(rank, dtype)
        expected_BD = torch.zeros(B, D)
        for row, experts in enumerate(CASES[case](rank).tolist()):
            for k, number in enumerate(experts):
                said_D = expert(x_BD[row], number).float()
                expected_BD[row] += gates_BK[row, k] * said_D
        got_BD = report[case, dtype]
        assert got_BD.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(got_BD.float(), expected_BD, rtol=tolerance, atol=1e-5)
