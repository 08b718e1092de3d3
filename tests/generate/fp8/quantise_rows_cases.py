"""What the kernel that rounds rows to E4M3 must satisfy, on any device.

On a machine without one, `python -m tests.generate.fp8.quantise_rows_cases` with TRITON_INTERPRET=1
runs them all on the CPU and prints their outcomes as JSON; `test_quantise_rows.py` does that.
`tests/gpu` runs the same cases compiled, on the device.
"""

from __future__ import annotations

import json
import traceback

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compass.generate.fp8.numbers import quantise
from compass.generate.fp8.quantise_rows import quantise_rows


def bits_equal_torchs(x: Tensor, device: str) -> None:
    """Byte for byte, and scale for scale, what torch does on the CPU; NaN of either sign."""
    if device == "cpu" and x.dtype == torch.bfloat16:  # the interpreter (3.9) widens these wrongly
        x = torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0.0, x)
    values, scale = (y.cpu() for y in quantise_rows(x.to(device)))
    expected, expected_scale = quantise(x)
    broken = expected.float().isnan()
    assert torch.equal(values.float().isnan(), broken)
    same = values.view(torch.uint8) == expected.view(torch.uint8)
    assert (same | broken).all(), x[~(same | broken).all(-1)]
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)


def any_bits_at_all_are_rounded_as_torch_rounds_them(device: str) -> None:
    """Infinities, NaN, subnormals and zeros among them."""

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(
        rows=st.lists(
            st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5),
            min_size=1,
            max_size=4,
        ),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    )
    def check(rows, dtype) -> None:
        x = torch.tensor(rows, dtype=torch.int32).view(torch.float32)
        bits_equal_torchs(x.to(dtype), device)

    check()


def rows_of_any_length_and_size_equal_torchs(device: str) -> None:
    """Shorter than a tile, a tile, and several; of very different magnitude."""
    noise = torch.Generator().manual_seed(0)
    for width in (1, 15, 16, 128, 770, 2048, 4096, 4097, 9000):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn((6, width), generator=noise)
            x *= torch.tensor([1e-44, 1e-38, 1e-3, 1.0, 3e4, 0.0])[:, None]
            bits_equal_torchs(x.to(dtype), device)


def every_place_between_two_numbers_goes_where_torch_sends_it(device: str) -> None:
    """All 2^16 bfloat16 numbers under a scale of 1: halves between two E4M3 numbers included."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    inside = numbers[numbers.abs() <= 448]
    x = torch.cat([torch.tensor([448.0]), inside])[None]
    bits_equal_torchs(x, device)
    assert quantise_rows(x.to(device))[1].tolist() == [1.0]


def a_row_that_is_not_contiguous_and_no_rows_at_all(device: str) -> None:
    x = torch.randn((24, 40), generator=torch.Generator().manual_seed(1))
    bits_equal_torchs(x.t()[3:], device)
    values, scale = quantise_rows(x[:0].to(device))
    assert values.shape == (0, 40)
    assert scale.shape == (0,)


CASES = {
    case.__name__: case
    for case in (
        any_bits_at_all_are_rounded_as_torch_rounds_them,
        rows_of_any_length_and_size_equal_torchs,
        every_place_between_two_numbers_goes_where_torch_sends_it,
        a_row_that_is_not_contiguous_and_no_rows_at_all,
    )
}

if __name__ == "__main__":
    outcomes = {}
    for name, case in CASES.items():
        try:
            case("cpu")
            outcomes[name] = "passed"
        except Exception:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))
