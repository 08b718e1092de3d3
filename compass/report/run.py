"""What is left of a run, however it ended."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.rollouts.reader import RunRollouts, list_rollouts

NOT_OF_THE_METHOD = frozenset({"seed", "run_dir", "resume"})
"""Fields in which runs may differ and still be repetitions of one another."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as its folder has it. Built by `read_run`."""

    name: str
    config: Mapping[str, Any]
    """Of config.toml; empty where there is none."""
    steps: Sequence[int]
    metrics: Mapping[str, Sequence[float | None]]
    """By key, one value per step; None where the step did not log it."""
    rollouts: RunRollouts
    missing: Sequence[str]
    """What is not there, or cannot be read, in a line each."""

    @property
    def family(self) -> str:
        """The same for runs that differ in their seed alone."""
        same = {k: v for k, v in self.config.items() if k not in NOT_OF_THE_METHOD}
        return json.dumps(same, sort_keys=True, default=str) if same else self.name

    @property
    def seed(self) -> int | None:
        """None where the config does not say."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    def last_tenth(self, key: str) -> float | None:
        """Mean over a metric's last tenth of steps, three at least; None if never logged."""
        return _mean(self._logged(key)[-self._window(key) :])

    def first_tenth(self, key: str) -> float | None:
        """Likewise, of the first ones."""
        return _mean(self._logged(key)[: self._window(key)])

    def total(self, key: str) -> float:
        """Sum over all steps."""
        return math.fsum(self._logged(key))

    def _logged(self, key: str) -> list[float]:
        return [value for value in self.metrics.get(key, ()) if value is not None]

    def _window(self, key: str) -> int:
        return max(3, len(self._logged(key)) // 10)


def read_run(run_dir: Path) -> RunData:
    """Everything of a run that can be read.

    Raises:
        UserError: there is no such folder, or neither metrics nor rollouts in it.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is no folder; name the run_dir of a run")
    missing: list[str] = []
    rows = _rows(run_dir / "metrics.jsonl", missing)
    rollouts = list_rollouts(run_dir)
    if not rows and not rollouts.files and not (run_dir / "metrics.jsonl").exists():
        raise UserError(
            f"{run_dir} has neither metrics.jsonl nor rollouts in it; name the run_dir of a run"
        )
    config = _config(run_dir / "config.toml", missing)
    if not rollouts.files:
        missing.append("no rollouts: the run kept none (report.keep_steps), or ended before")
    missing += rollouts.missing
    missing += _unfinished(run_dir, config, rows)
    steps = sorted({row["step"] for row in rows})
    place = {step: i for i, step in enumerate(steps)}
    metrics: dict[str, list[float | None]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step":
                metrics.setdefault(key, [None] * len(steps))[place[row["step"]]] = value
    return RunData(
        name=run_dir.name,
        config=config,
        steps=steps,
        metrics=metrics,
        rollouts=rollouts,
        missing=missing,
    )


def named_apart(run_dirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [path.resolve().parts for path in run_dirs]
    for length in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({i})" for i, path in enumerate(run_dirs)]


def _rows(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """Whole records; `missing` is told of the others."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        missing.append(f"metrics.jsonl cannot be read: {error.strerror}")
        return []
    rows, damaged = [], 0
    for line in lines:
        row = _record(line)
        if row is None:
            damaged += 1
        else:
            rows.append(row)
    if damaged:
        missing.append(f"metrics.jsonl: {damaged} of {len(lines)} lines are no records")
    if not rows:
        missing.append("metrics.jsonl has no step yet")
    return rows


def _record(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_whole(row.get("step")):
        return None
    return {"step": row["step"]} | {
        key: _finite(value) for key, value in row.items() if key != "step" and _is_number(value)
    }


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value


def _config(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        missing.append(f"config.toml cannot be read: {error.strerror}")
    except ValueError as error:
        missing.append(f"config.toml is damaged: {error}")
    return {}


def _unfinished(
    run_dir: Path, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Whether the run came to its end."""
    if (run_dir / "model" / "config.json").exists():
        return []
    last = max((row["step"] for row in rows), default=0)
    asked = config.get("num_steps")
    of = f" of {asked}" if isinstance(asked, int) else ""
    return [f"it has not ended: step {last}{of} is the last one logged, and there is no model yet"]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
