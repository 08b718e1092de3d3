"""docs/metrics.md as patterns of keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def keys_of_page() -> list[str]:
    """Keys in the first column of its tables, with their `<names>`."""
    cells = re.findall(r"^\|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([^`]+/[^`]+)`", cell)]


def pattern_of(key: str) -> re.Pattern[str]:
    """What a key of the page matches: a name is anything without a slash."""
    parts = re.split(r"<[^>]+>", key)
    return re.compile(r"[^/]+".join(map(re.escape, parts)))


def unknown(keys: Iterable[str]) -> list[str]:
    """Those that the page does not know."""
    patterns = [pattern_of(key) for key in keys_of_page()]
    return sorted(key for key in keys if not any(p.fullmatch(key) for p in patterns))


def never_logged(keys: Iterable[str]) -> set[str]:
    """Keys of the page that match none of those that were logged."""
    logged = list(keys)
    return {key for key in keys_of_page() if not any(map(pattern_of(key).fullmatch, logged))}
