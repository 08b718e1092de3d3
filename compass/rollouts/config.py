"""How many steps' rollouts a run keeps. Apart from the writer, so that flags are checked before
what takes long is imported."""

from __future__ import annotations

from dataclasses import dataclass

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a run leaves for its report (docs/report.md)."""

    keep_steps: int = 100
    """Newest steps whose rollouts stay in `run_dir/rollouts`, each with every token; 0 writes
    none."""

    def __post_init__(self) -> None:
        if self.keep_steps < 0:
            raise UserError(f"report.keep_steps={self.keep_steps} must be 0 (none) or more")
