"""JSON Lines in and out: one object a line, errors that name the line, files whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.manifest import REMEDY

MAX_DEPTH = 100
"""Brackets of a row that may be open at once: Python walks nested values by recursion, here and in
every process that the row is sent to."""


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `("FILE:LINE", object)` for every line that is not blank.

    Errors: `UserError` for a missing or unreadable file, a line that is not UTF-8 or not a JSON
    object, a value that Python cannot hold (half a surrogate pair, an integer of thousands of
    digits, hundreds of nested brackets), and a file without a single object.
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
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); "
            "each line must hold one complete JSON object"
        ) from None
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError:  # what is left: the interpreter's limit on the digits of an integer
        raise UserError(
            f"{where}: an integer has more than {sys.get_int_max_str_digits()} digits; "
            "write it as a string, in quotes"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a JSON {type(value).__name__}, not an object; "
            'each line must look like {"id": ..., ...}'
        )
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise _too_deep(where)
    if b"\\u" in line:
        _check_text(value, where)
    return value


def _too_deep(where: str) -> UserError:
    return UserError(
        f"{where}: more than {MAX_DEPTH} nested brackets; write the value as a string, in quotes"
    )


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether more than `depth` lists and objects lie in each other."""
    level = [value]
    for _ in range(depth + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return False
        level = [
            inner
            for item in nested
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return True


def _check_text(row: Mapping[str, Any], where: str) -> None:
    """JSON's escapes can spell half of a surrogate pair, which no UTF-8 text can hold."""
    for name, value in row.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise UserError(
                f"{where}: {name!a} holds {half}, half of a surrogate pair, which is no text; "
                "write the whole character"
            ) from None


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; the file appears only when it is complete.

    Errors: `UserError` when the folder does not exist or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # What a verifier or a tokenizer says may hold half a surrogate pair. Escaped with a
        # backslash it is what JSON itself writes for it.
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {REMEDY}") from None
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or its folder is not there
            partial.unlink()
