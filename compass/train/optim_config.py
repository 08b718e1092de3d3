"""What the optimizer is told. Apart from it, so that flags are checked before it is imported."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimGroupConfig:
    """Parameters of their own, a table `[optim.groups.NAME]`."""

    pattern: str
    """Regular expression, found anywhere in a parameter's name, as in
    `layers.0.moe.router.gate.weight` (docs/training.md)."""
    lr: float | None = None
    """Peak learning rate in place of `optim.lr`; the schedule is the same."""
    weight_decay: float | None = None
    """In place of `optim.weight_decay`, for norms too."""
    frozen: bool = False
    """Left as they are: no gradient, no moments."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"optim.groups: pattern {self.pattern!r} is no regular expression ({error})"
            ) from None
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(
                    f"optim.groups: pattern {self.pattern!r} has {name}={value}, which must be 0 "
                    "or a number above"
                )
        if self.frozen and (self.lr is not None or self.weight_decay is not None):
            raise UserError(
                f"optim.groups: pattern {self.pattern!r} is frozen and has an lr or weight_decay; "
                "leave one of them out"
            )

    def matches(self, name: str) -> bool:
        """Whether the parameter called `name` belongs to it."""
        return re.search(self.pattern, name) is not None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """How moments are kept: in float32, or block by block in 8 bits (torchao; arXiv 2110.02861), a
    quarter of the memory. Tensors of less than 4,096 values on a rank stay in float32."""
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
    groups: dict[str, OptimGroupConfig] = field(default_factory=dict)
    """Parameters with a learning rate or decay of their own, or frozen; the rest is as above."""

    def __post_init__(self) -> None:
        for name, group in self.groups.items():
            if self.lr == 0 and group.lr:
                raise UserError(
                    f"optim.groups.{name}.lr={group.lr} follows the schedule of optim.lr, which is "
                    "0; to train this group alone, set optim.lr and freeze the others"
                )

    def group_of(self, parameter: str) -> OptimGroupConfig | None:
        """The first group that a parameter belongs to; None: none of them."""
        return next((g for g in self.groups.values() if g.matches(parameter)), None)
