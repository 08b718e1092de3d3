"""Progress of a run: `metrics.jsonl`, TensorBoard, the console, and stopwatches.

Keys have the form `area/name` (`reward/mean`, `timing_s/rollout`); values are plain floats, already
reduced over ranks. Only one rank logs: the others hold a logger with `enabled=False`.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console

from compass.console import ProgressLine
from compass.errors import UserError
from compass.manifest import write_whole


class MetricsLogger:
    """Writes a step's metrics to every place they are read.

    Args:
        run_dir: gets `metrics.jsonl` and `tensorboard/`.
        enabled: False on every rank but the first: all methods then do nothing.
        total_steps: the step at which the run ends, for the ETA.
        resumed_from: the step whose checkpoint this run continues, None for a fresh run. What an
            earlier run logged after that step is cut, so that the file has each step once.
        console: where progress goes; see `compass.console`.
        clock: seconds, monotonic.

    Raises:
        UserError: `metrics.jsonl` is to be continued but holds a line that is not JSON, or the
            folder cannot be written; also from `log`.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        enabled: bool,
        total_steps: int,
        resumed_from: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._sinks: tuple[_JsonlFile | _TensorBoard | ProgressLine, ...] = ()
        if enabled:
            first_step = 0 if resumed_from is None else resumed_from + 1
            with self._writing():
                run_dir.mkdir(parents=True, exist_ok=True)
                self._sinks = (
                    _JsonlFile(run_dir / "metrics.jsonl", first_step),
                    _TensorBoard(run_dir / "tensorboard", first_step),
                    ProgressLine(console or Console(), total_steps, resumed_from or 0, clock),
                )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step. Steps count from 1; what is known before the first (an evaluation) is
        step 0. A step may be logged in several calls. In JSON, a value that is not finite is null.
        """
        with self._writing():
            for sink in self._sinks:
                sink.log(step, metrics)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise UserError(f"cannot write the logs in {self._run_dir}: {e.strerror}") from e

    def close(self) -> None:
        """Flush everything and leave the console as it was."""
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Span(NamedTuple):
    """When a block of a stopwatch began and ended, by its clock."""

    name: str
    began: float
    ended: float


class Stopwatch:
    """Adds up wall time by name: `with stopwatch("rollout"): ...`.

    Device work that was only queued is charged to the block that waits for it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self.spans: list[Span] = []
        """Every block that has ended."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charge the time of the block to `name`; a block entered again adds to it."""
        started = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            self._seconds[name] = self._seconds.get(name, 0.0) + ended - started
            self.spans.append(Span(name, started, ended))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far, by name."""
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """Seconds since the last call, keyed `timing_s/<name>`."""
        taken = {f"timing_s/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return taken


class _RecordFile:
    """A file of whole records: one that does not fit on the disk leaves no part of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, record: bytes) -> None:
        size = self._file.tell()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        self._file.close()


class _JsonlFile:
    def __init__(self, path: Path, first_step: int) -> None:
        if path.exists():
            _cut_from(path, first_step)
        self._file = _RecordFile(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False) + "\n"
        self._file.append(line.encode())

    def close(self) -> None:
        self._file.close()


def _cut_from(path: Path, first_step: int) -> None:
    """Drop the records from `first_step` on, and a last line that a crash cut short."""
    kept = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True), start=1):
        if line.endswith("\n") and _step_of(line, path, number) < first_step:
            kept.append(line)
    write_whole(path, "".join(kept))


def _step_of(line: str, path: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}:{number}: not a metrics record; move the file away") from e


class _TensorBoard:
    """An event file, written in the caller's thread: SummaryWriter's own thread would print a
    traceback of its own where the disk is full."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported here because it takes a second, which the other ranks need not spend.
        from tensorboard.compat.proto import event_pb2
        from torch.utils.tensorboard import summary

        self._events, self._summary = event_pb2, summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = _RecordFile(folder / name)
        self._append(file_version="brain.Event:2")
        # What an earlier run wrote from this step on is not shown.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(step=first_step, session_log=start)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._append(step=step, summary=self._summary.scalar(key, value))

    def close(self) -> None:
        self._file.close()

    def _append(self, **fields: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        event = self._events.Event(wall_time=time.time(), **fields)
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())
