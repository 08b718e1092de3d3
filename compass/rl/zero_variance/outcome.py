"""When a group is flat, and the record of what became of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass.types import FLAT_TOLERANCE

SavedBy = Literal["base", "expand", "reshape", "residual", "none"]
"""What made a group train: its first rollouts differed (`base`), or the stage that helped;
`none`: it trains nothing."""


@dataclass(frozen=True, kw_only=True)
class GroupOutcome:
    """What became of one group that was rolled out. Built by the rollout, read by history and
    ledger; JSON values only, so that ranks can exchange it."""

    prompt_id: str
    verdicts: tuple[float, ...]
    """Of the valid rollouts, expansion included."""
    is_flat: bool
    """Their unshaped rewards agree."""
    base_rollouts: int
    """Rollouts before any expansion, valid or not."""
    base_tokens: int
    """Completion tokens of those."""
    expand_rollouts: int
    """Rollouts that expansion added."""
    expand_tokens: int
    """Completion tokens of those."""
    saved_by: SavedBy

    def __post_init__(self) -> None:
        if self.is_flat != (self.saved_by in ("reshape", "residual", "none")):
            raise ValueError(
                f"group {self.prompt_id}: is_flat={self.is_flat} cannot be saved by "
                f"{self.saved_by!r}"
            )
        if self.saved_by == "expand" and self.expand_rollouts == 0:
            raise ValueError(f"group {self.prompt_id}: saved by an expansion without rollouts")


def differ(values: Sequence[float]) -> bool:
    """True when values span more than the tolerance: they carry a signal."""
    return bool(values) and max(values) - min(values) > FLAT_TOLERANCE


def tie_sign(verdicts: Sequence[float]) -> int:
    """+1 for a tie of right answers, -1 of wrong ones, 0 for no tie or nothing to compare.

    Right is any verdict above 0 (arXiv 2509.21880, eq. 5 reads rewards of 0 and 1), so a tie at a
    half counts as right: our reading. One verdict alone has a sign too.
    """
    if not verdicts or differ(verdicts):
        return 0
    return 1 if math.fsum(verdicts) / len(verdicts) > 0 else -1
