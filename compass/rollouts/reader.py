"""Reads the rollouts of a run: whole steps, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compass.errors import UserError
from compass.rollouts.schema import FOLDER, METADATA_KEY, VERSION, step_and_rank


@dataclass(frozen=True, kw_only=True)
class RolloutFile:
    """One file that can be read. Built by `list_rollouts`."""

    path: Path
    step: int
    rank: int
    num_rows: int
    told: dict[str, Any]
    """What it says of its step: version, world_size, spans ([name, began, ended] in seconds since
    the step began on that rank), expert_load ([layer][expert] of the rank's rollouts),
    cpu_seconds, writer_seconds."""

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Its rows (`compass.rollouts.schema`), or some columns of them.

        Raises:
            UserError: it is damaged behind its footer.
        """
        try:
            return pq.read_table(self.path, columns=columns, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path} is damaged ({error}); delete it") from error

    def lengths(self) -> list[tuple[int, str]]:
        """Tokens of each completion, and what saved its group; none where they cannot be read."""
        try:
            table = self.table(["completion_ids", "saved_by"])
        except UserError:
            return []
        lengths = pc.list_value_length(table["completion_ids"]).to_pylist()
        return list(zip(lengths, table["saved_by"].to_pylist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class RunRollouts:
    """The rollout files of a run. Built by `list_rollouts`."""

    files: tuple[RolloutFile, ...]
    """By step and rank."""
    missing: tuple[str, ...]
    """What should be there and is not, or cannot be read, in a line each."""

    @property
    def steps(self) -> list[int]:
        """Those of which there is a file."""
        return sorted({file.step for file in self.files})


def list_rollouts(run_dir: Path) -> RunRollouts:
    """The rollout files of a run, finished or not; what is damaged is named and left out."""
    files, missing = [], []
    for path in sorted((run_dir / FOLDER).glob("step_*.parquet")):
        if (place := step_and_rank(path)) is None:
            continue
        try:
            files.append(_open(path, *place))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            missing.append(f"{path.name} cannot be read: {_first_line(error)}")
    files.sort(key=lambda file: (file.step, file.rank))
    by_step: dict[int, list[RolloutFile]] = {}
    for file in files:
        by_step.setdefault(file.step, []).append(file)
    for step, of_step in by_step.items():
        world_size = max(file.told["world_size"] for file in of_step)
        absent = sorted(set(range(world_size)) - {file.rank for file in of_step})
        if absent:
            missing.append(f"step {step} lacks the rollouts of rank {', '.join(map(str, absent))}")
    return RunRollouts(files=tuple(files), missing=tuple(missing))


def _open(path: Path, step: int, rank: int) -> RolloutFile:
    metadata = pq.read_metadata(path)
    told = json.loads(metadata.metadata[METADATA_KEY])
    if told["version"] > VERSION:
        raise ValueError(f"its schema has version {told['version']}, newer than {VERSION}")
    if not isinstance(told["world_size"], int):
        raise ValueError(f"its world_size is {told['world_size']!r}")
    return RolloutFile(path=path, step=step, rank=rank, num_rows=metadata.num_rows, told=told)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
