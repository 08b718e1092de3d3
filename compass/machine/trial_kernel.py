"""A Triton kernel of one line, to find out whether kernels can be built on this machine."""

# mypy: disable-error-code="arg-type,assignment,valid-type"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _write_one(ptr):
    tl.store(ptr, 1)


def compile_and_run(device: torch.device) -> None:
    """Raises what Triton raises when it cannot."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    _write_one[(1,)](out)
    assert out.item() == 1
