"""When checkpoints are written. Apart from them, so that flags are checked before torch's are
imported."""

from __future__ import annotations

from dataclasses import dataclass

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how many to keep."""

    interval: int = 20
    """Save every this many steps, and after the last; 0 never saves."""
    keep_last: int = 2
    """Complete checkpoints that stay; older ones are deleted once a new one is complete."""
    grace_seconds: float = 20.0
    """After SIGTERM or SIGINT the step at hand is finished and saved if that takes no longer than
    this; less than the 30 s after which torchrun and Slurm kill."""

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise UserError(f"checkpoint.interval={self.interval} must be 0 (never) or more")
        if self.keep_last < 1:
            raise UserError(f"checkpoint.keep_last={self.keep_last} must be at least 1")
        if not self.grace_seconds >= 0:
            raise UserError(f"checkpoint.grace_seconds={self.grace_seconds} must be 0 or more")
