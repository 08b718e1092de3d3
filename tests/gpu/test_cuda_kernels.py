"""On a CUDA device: the policy's own kernels, compiled."""

from __future__ import annotations

import pytest
import torch

from tests.models import kernel_cases

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", kernel_cases.CASES.values(), ids=lambda c: c.__name__)
def test_our_kernel(case, dtype) -> None:
    case("cuda", dtype)
