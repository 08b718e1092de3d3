"""Rows of data files, whatever their format: JSON Lines, JSON, parquet, and globs over them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.jsonl import read_jsonl

_PARQUET_BATCH = 1024
"""Rows that are in memory at once."""
_GLOB_MARKS = frozenset("*?[")


def files_of(paths: str | Path | Sequence[Path]) -> tuple[Path, ...]:
    """The files that paths, or globs such as `data/*.parquet`, name, in order.

    Raises:
        UserError: a folder, a glob without a file, or what looks like a name on a hub.
    """
    several = [Path(paths)] if isinstance(paths, str | Path) else paths
    return tuple(file for path in several for file in _files_of(path))


def _files_of(path: Path) -> tuple[Path, ...]:
    if _GLOB_MARKS & set(str(path)) and not path.exists():
        found = tuple(sorted(Path(name) for name in glob.glob(str(path), recursive=True)))
        if not found:
            raise UserError(f"{path} matches no file; mend the pattern")
        return found
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, or a pattern such as {path}/*")
    if not path.exists() and not path.is_absolute() and not path.suffix and len(path.parts) == 2:
        raise UserError(
            f"{path} does not exist; if it is a data set on the Hugging Face hub, download it "
            f"first: hf download --repo-type dataset {path} --local-dir data"
        )
    return (path,)


def read_rows(paths: str | Path | Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `("FILE:ROW", row)` of every row, in the order of the files; rows count from 1. The
    name's ending tells the format: `.parquet`, `.json` (a list of objects), else JSON Lines.

    Raises:
        UserError: see `files_of`; a file that is not what its name says, or has no row.
    """
    for file in files_of(paths):
        if file.suffix == ".parquet":
            yield from _read_parquet(file)
        elif file.suffix == ".json":
            yield from _read_json(file)
        else:
            yield from read_jsonl(file)


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of a file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}); if each line is an object of its own, call it .jsonl"
        ) from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must be a list of objects with at least one; see .jsonl too")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a JSON {type(row).__name__}, not an object")
        yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow  # takes a tenth of a second, and most files are JSON Lines
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; give a parquet file"
        ) from None
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file ({error}); download it again") from None
    with file:
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    if not number:
        raise UserError(f"{path} has no row")
