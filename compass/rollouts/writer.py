"""Writes rollout files in a thread of its own, each whole or absent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pyarrow.parquet as pq

from compass.errors import UserError
from compass.rollouts.record import StepRecord
from compass.rollouts.schema import file_name, step_and_rank
from compass.rollouts.table import TableMaker
from compass.text.tokenizer import Tokenizer

_COMPRESSION_LEVEL = 1
_PARTIAL = ".partial"


class RolloutFiles:
    """The rollout files of one rank. A step is written while the next one runs; one that is handed
    over waits for the one before it, so that no more than the newest is ever on its way.

    Args:
        folder: gets the files; made if needed.
        keep_steps: so many steps stay.
        last_step: what an earlier run wrote after that step is deleted, if `is_main`.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, *, keep_steps: int, last_step: int, is_main: bool
    ) -> None:
        self._folder = folder
        self._keep_steps = keep_steps
        self._tables = TableMaker(tokenizer)
        self._records: SimpleQueue[StepRecord | None] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._error: Exception | None = None
        self.cpu_seconds = 0.0
        """CPU time of the thread up to the last file."""
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if is_main:
                _delete_after(folder, last_step)
        self._thread = threading.Thread(target=self._work, name="rollout files", daemon=True)
        self._thread.start()

    def put(self, record: StepRecord) -> None:
        """Hand over a step.

        Raises:
            UserError: an earlier one could not be written.
        """
        self.drain()
        self._idle.clear()
        self._records.put(record)

    def drain(self) -> None:
        """Wait until everything that was handed over is on disk.

        Raises:
            UserError: it could not be written.
        """
        self._idle.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread after what it has been given; errors are left to `drain`."""
        self._records.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                with _told(self._folder):
                    self._write(record)
            except Exception as error:  # raised where the run can end by it: in `drain`
                self._error = error
            del record  # tokens and routes, until the next one
            self.cpu_seconds = time.thread_time()
            self._idle.set()

    def _write(self, record: StepRecord) -> None:
        table = self._tables.table(record, writer_seconds=self.cpu_seconds)
        final = self._folder / file_name(record.step, record.rank)
        partial = self._folder / f".{final.name}{_PARTIAL}"
        with partial.open("wb") as file:
            pq.write_table(
                table,
                file,
                compression="zstd",
                compression_level=_COMPRESSION_LEVEL,
                write_statistics=False,
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
        for path, step in _steps(self._folder):
            if step <= record.step - self._keep_steps:
                path.unlink(missing_ok=True)  # every rank clears up


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """An `OSError` inside the block becomes a line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write rollouts in {folder}: {error.strerror or error}; make room, or keep "
            "fewer of them with --report.keep_steps (0: none)"
        ) from error


def _delete_after(folder: Path, last_step: int) -> None:
    """What the run that went on from `last_step` will write itself, and what a crash left."""
    for path in folder.glob(f".step_*{_PARTIAL}"):
        path.unlink()
    for path, step in _steps(folder):
        if step > last_step:
            path.unlink()


def _steps(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.iterdir()):
        if (found := step_and_rank(path)) is not None:
            yield path, found[0]
