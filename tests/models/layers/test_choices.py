"""Choices are sorted by expert, and what experts made of them is summed up token by token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.models.layers.choices import sort_choices, sum_choices, sum_first_choices


@given(experts=st.lists(st.integers(0, 6), max_size=30))
def test_a_sort_is_stable_and_knows_where_everything_went(experts) -> None:
    order, place, ends = sort_choices(torch.tensor(experts, dtype=torch.int32), 7)
    expected = sorted(range(len(experts)), key=lambda n: (experts[n], n))
    assert order.tolist() == expected
    assert [expected[p] for p in place.tolist()] == list(range(len(experts)))
    assert ends.tolist() == [sum(e <= number for e in experts) for number in range(7)]
    assert ends.dtype == torch.int32


@given(seed=st.integers(0, 1000), end=st.integers(0, 12))
def test_rows_behind_the_end_count_as_zero_whatever_they_hold(seed, end) -> None:
    noise = torch.Generator().manual_seed(seed)
    rows_RD = torch.randn(12, 5, generator=noise)
    gates_TK = torch.rand(4, 3, generator=noise)
    place_N = torch.randperm(12, generator=noise)
    zeroed_RD = rows_RD.clone()
    zeroed_RD[end:] = 0
    expected_TD = sum_choices(zeroed_RD, place_N.argsort(), place_N, gates_TK)
    rows_RD[end:] = torch.nan
    got_TD = sum_first_choices(rows_RD, place_N, gates_TK, torch.tensor([end]))
    torch.testing.assert_close(got_TD, expected_TD, rtol=1e-6, atol=1e-6)
