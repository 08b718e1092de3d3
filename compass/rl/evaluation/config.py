"""What a run is evaluated on. Apart from it, so that flags are checked before it is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One held-out set, a table `[eval.NAME]`, logged as `eval/NAME/*`."""

    data: Path
    """Its prompt file, or a glob."""
    num_samples: int = 1
    """Completions of each prompt: pass@k and majority@k for every k up to that."""
    temperature: float | None = None
    """Of these completions, 0 is greedy; None: the run's."""
    max_completion_tokens: int | None = None
    """Longest of these completions; None: the run's."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"eval: num_samples={self.num_samples} must be at least 1")
