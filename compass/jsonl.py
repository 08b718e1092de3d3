"""JSON Lines in and out: one object a line, errors that name the line, files whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compass.errors import UserError


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `("FILE:LINE", object)` for every line that is not blank.

    Errors: `UserError` for a missing or unreadable file, a line that is not UTF-8 or not a JSON
    object, and a file without a single object.
    """
    path = Path(path)
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = True
                    where = f"{path}:{number}"
                    yield where, _parse_object(line, where)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give the path of a JSONL file"
        ) from None
    if not found:
        raise UserError(f"{path} is empty; it needs one JSON object a line")


def _parse_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); "
            "each line must hold one complete JSON object"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a JSON {type(value).__name__}, not an object; "
            'each line must look like {"id": ..., ...}'
        )
    return value


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; the file appears only when it is complete.

    Errors: `UserError` when the folder does not exist or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and is writable"
        ) from None
    try:
        with file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
