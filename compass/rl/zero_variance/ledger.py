"""The account of the stages: how many groups each met, saved and passed on, and what it cost.

Five rows, the out of one being the in of the next:

- `prefilter`: in, prompts drawn; saved, those skipped, which cost nothing; out, groups rolled out.
- `base`: in, groups rolled out; saved, not flat at the configured size; spends the rollouts that
  every group gets; without it the others could not add up.
- `expand`: in, groups flat at that size; saved, those whose tie broke; spends the rollouts added.
- `reshape`: in, groups still flat; saved, those whose shaped rewards differ.
- `residual`: in, groups flat by reward too; saved, those trained by RL-ZVP; out, those that train
  nothing.

A stage that is switched off saves nothing. Every generated rollout and token is in one row: `base`
or `expand`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.table import Table

from compass.rl.zero_variance.outcome import GroupOutcome

STAGES = ("prefilter", "base", "expand", "reshape", "residual")
"""Rows, in the order a group meets them."""
FIELDS = ("in", "saved", "out", "rollouts", "tokens", "seconds")
"""Columns: groups (prompts in `prefilter`), then what was spent."""


class Ledger:
    """Counts by stage and field. One for a step, another for the whole run."""

    def __init__(self) -> None:
        self._counts = {(stage, name): 0.0 for stage in STAGES for name in FIELDS}

    def skip(self, num_prompts: int) -> None:
        """Prompts that the pre-filter did not let through."""
        self._add("prefilter", "in", num_prompts)
        self._add("prefilter", "saved", num_prompts)

    def record(self, outcome: GroupOutcome) -> None:
        """One group that was rolled out, on its way through the stages."""
        for stage in STAGES:
            self._add(stage, "in", 1)
            if stage == outcome.saved_by:
                self._add(stage, "saved", 1)
                break
            self._add(stage, "out", 1)
        self._add("base", "rollouts", outcome.base_rollouts)
        self._add("base", "tokens", outcome.base_tokens)
        self._add("expand", "rollouts", outcome.expand_rollouts)
        self._add("expand", "tokens", outcome.expand_tokens)

    def spend(self, stage: str, seconds: float) -> None:
        """Time a stage took."""
        self._add(stage, "seconds", seconds)

    def add(self, other: Ledger) -> None:
        """Add another ledger: a step to a run, or a rank's to the others'."""
        for (stage, name), value in other._counts.items():
            self._add(stage, name, value)

    @property
    def flat_share(self) -> float:
        """Groups that were flat by reward after expansion, of those rolled out; 0 for none."""
        return self["expand", "out"] / max(1.0, self["base", "in"])

    @property
    def residual_share(self) -> float:
        """Groups that reached stage 4, of those rolled out; 0 for none."""
        return self["residual", "in"] / max(1.0, self["base", "in"])

    @property
    def rollouts_per_useful_group(self) -> float | None:
        """Rollouts spent for each group whose verdicts differ; None when there is none."""
        useful = self["base", "saved"] + self["expand", "saved"]
        spent = sum(self[stage, "rollouts"] for stage in STAGES)
        return spent / useful if useful else None

    def __getitem__(self, key: tuple[str, str]) -> float:
        """The count of (stage, field)."""
        return self._counts[key]

    def metrics(self) -> dict[str, float]:
        """`zv/<stage>/<field>`."""
        return {f"zv/{stage}/{name}": value for (stage, name), value in self._counts.items()}

    def to_list(self) -> list[float]:
        """All counts, for a sum over ranks; see `from_list`."""
        return list(self._counts.values())

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Self:
        """The ledger with these counts."""
        ledger = cls()
        ledger._counts = dict(zip(ledger._counts, values, strict=True))
        return ledger

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Counts by stage and field; JSON values. Also what a run's summary holds."""
        return {stage: {name: self[stage, name] for name in FIELDS} for stage in STAGES}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for stage, name in self._counts:
            self._counts[stage, name] = state[stage][name]

    def table(self) -> Table:
        """For the console, at the end of a run."""
        table = Table(title="zero-variance stages")
        table.add_column("stage")
        for name in FIELDS:
            table.add_column(name, justify="right")
        for stage in STAGES:
            counts = [f"{self[stage, name]:,.0f}" for name in FIELDS[:-1]]
            table.add_row(stage, *counts, f"{self[stage, 'seconds']:,.1f}")
        return table

    def _add(self, stage: str, name: str, value: float) -> None:
        self._counts[stage, name] += value
