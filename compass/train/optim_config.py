"""What the optimizer is told. Apart from it, so that flags are checked before it is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-6
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay; norms are not decayed."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after warm-up."""
    min_lr_ratio: float = 0.1
    """Where the decay ends, as a share of `lr`."""
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped to this."""
