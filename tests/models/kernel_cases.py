"""What the policy's Triton kernels must satisfy, on any device.

On a machine without one, Triton interprets kernels on the CPU, but only in a process that was
started for it: `python -m tests.models.kernel_cases` with TRITON_INTERPRET=1 runs them all and
prints their outcomes as JSON. `test_kernels.py` does that; `tests/gpu` runs the same cases
compiled, on the device.

Shape legend: T tokens, K experts per token, N = T * K choices, E experts, D width, H head width.
"""

from __future__ import annotations

import json
import traceback

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.models.kernels.combine import combine
from compass.models.kernels.rotate import rotate_by_table
from compass.models.kernels.sort import sort_by_expert
from compass.models.layers.rotary import rotate

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def sorting_is_torchs_stable_sort(device: str, dtype: torch.dtype) -> None:
    """Also with fewer choices than experts, and with more than a tile holds."""

    @settings(max_examples=20, deadline=None)
    @given(
        num_choices=st.sampled_from([0, 1, 7, 64, 1000, 5000]),
        num_experts=st.sampled_from([1, 8, 60]),
        kind=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
        seed=st.integers(0, 99),
    )
    def check(num_choices, num_experts, kind, seed) -> None:
        draw = torch.Generator().manual_seed(seed)
        expert_N = torch.randint(num_experts, (num_choices,), generator=draw)
        order_N, place_N, ends_E = sort_by_expert(expert_N.to(kind).to(device), num_experts)
        expected_N = expert_N.argsort(stable=True)
        assert torch.equal(order_N.cpu(), expected_N)
        assert torch.equal(place_N.cpu(), expected_N.argsort())
        counts_E = expert_N.bincount(minlength=num_experts)
        assert torch.equal(ends_E.cpu(), counts_E.cumsum(0).int())

    check()


def a_sum_over_experts_equals_a_loop(device: str, dtype: torch.dtype) -> None:
    """And so do the gradients of rows and gates."""
    for T, K, D in ((0, 2, 8), (1, 1, 3), (5, 2, 32), (9, 8, 1500)):
        draw = torch.Generator().manual_seed(T)
        rows_ND = torch.randn((T * K, D), generator=draw).to(dtype).to(device).requires_grad_()
        gates_TK = torch.rand((T, K), generator=draw).to(device).requires_grad_()
        place_TK = torch.randperm(T * K, generator=draw).view(T, K).to(device)
        # A gradient that both types hold: else its rounding adds up over D.
        slope_TD = torch.randn((T, D), generator=draw).to(dtype).float().to(device)
        out_TD = combine(rows_ND, place_TK, gates_TK)
        assert out_TD.dtype == dtype
        expected_TD = torch.zeros((T, D), device=device)
        for k in range(K):
            expected_TD = expected_TD + gates_TK[:, k : k + 1] * rows_ND.float()[place_TK[:, k]]
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(out_TD.float(), expected_TD, **close)
        slopes = [
            torch.autograd.grad((sums.float() * slope_TD).sum(), (rows_ND, gates_TK))
            for sums in (out_TD, expected_TD)
        ]
        for got, expected in zip(*slopes, strict=True):
            torch.testing.assert_close(got, expected, rtol=10 * close["rtol"], atol=close["atol"])


def rows_behind_the_end_count_nothing(device: str, dtype: torch.dtype) -> None:
    """Not even what is no number."""
    rows_ND = torch.ones((6, 4), dtype=dtype, device=device)
    rows_ND[4:] = float("nan")
    place_TK = torch.tensor([[0, 4], [5, 1], [3, 2]], device=device)
    gates_TK = torch.tensor([[0.5, 1.0], [1.0, 0.25], [1.0, 2.0]], device=device)
    end = torch.tensor([4], dtype=torch.int32, device=device)
    out_TD = combine(rows_ND, place_TK, gates_TK, end[0])
    assert out_TD.dtype == torch.float32
    assert torch.equal(out_TD.cpu(), torch.tensor([0.5, 0.25, 3.0])[:, None].expand(3, 4))


def a_rotation_equals_its_composition(device: str, dtype: torch.dtype) -> None:
    """And its gradient turns back."""
    for T, N, H in ((0, 2, 8), (1, 1, 16), (7, 5, 64), (3, 8, 128)):
        draw = torch.Generator().manual_seed(T)
        angles_Ph = torch.rand((11, H // 2), generator=draw) * 7
        angles_PH = torch.cat((angles_Ph, angles_Ph), dim=1)
        table_PC = torch.cat((angles_PH.cos(), angles_PH.sin()), dim=1).to(device)
        positions_T = torch.randint(11, (T,), generator=draw).to(device)
        x_TNH = torch.randn((T, N, H), generator=draw).to(dtype).to(device).requires_grad_()
        slope_TNH = torch.randn((T, N, H), generator=draw).to(dtype).to(device)
        cos_T1H, sin_T1H = table_PC[positions_T].unsqueeze(1).chunk(2, dim=-1)
        out_TNH = rotate_by_table(x_TNH, table_PC, positions_T)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(out_TNH, rotate(x_TNH.detach(), cos_T1H, sin_T1H), **close)
        (slope,) = torch.autograd.grad(out_TNH, x_TNH, slope_TNH)
        expected = rotate(slope_TNH, cos_T1H, sin_T1H, back=True)
        torch.testing.assert_close(slope, expected, **close)


CASES = {
    case.__name__: case
    for case in (
        sorting_is_torchs_stable_sort,
        a_sum_over_experts_equals_a_loop,
        rows_behind_the_end_count_nothing,
        a_rotation_equals_its_composition,
    )
}

if __name__ == "__main__":
    outcomes = {}
    for name, case in CASES.items():
        try:
            # Not in bfloat16, whose rounding the interpreter (3.6) does not imitate.
            for dtype in (torch.float32, torch.float16):
                case("cpu", dtype)
            outcomes[name] = "passed"
        except Exception:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))
