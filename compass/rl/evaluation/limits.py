"""How much an evaluation can be asked for. Apart from it, so that flags are checked before numpy
and torch are imported."""

from __future__ import annotations

from compass.errors import UserError

MAX_SAMPLES = 1000
"""Of a prompt: of more, the number of their subsets does not fit a float."""


def check_num_samples(num_samples: int) -> None:
    """`UserError` for a number of samples that nothing can be estimated from."""
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples} must be at least 1")
    if num_samples > MAX_SAMPLES:
        raise UserError(f"num_samples={num_samples} must be at most {MAX_SAMPLES}")
