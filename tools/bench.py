"""Benchmarks, one subcommand each; `tools/bench.py NAME --help` explains its flags.

    python tools/bench.py zve [--json]      zero-variance stages on known pass rates, no model
    python tools/bench.py gen [--json]      generation against transformers

With --json the last line is one JSON object with at least `ratio`, its `limit` and `versions`.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import bench_gen
import bench_zve

from compass.cli import exit_on_user_error
from compass.errors import UserError

Bench = Callable[[Sequence[str], str], Mapping[str, Any] | None]
"""Takes its flags and this file's description; prints its tables, and returns the figures if they
are wanted as JSON."""

BENCHES: Mapping[str, Bench] = MappingProxyType({"gen": bench_gen.run, "zve": bench_zve.run})

PACKAGES = ("compass-rl", "torch", "torchtitan")
"""Reported with their versions."""


def main() -> None:
    """Run the benchmark that the first word names."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h"):
        print(__doc__)
        return
    if words[0] not in BENCHES:
        raise UserError(f"no benchmark {words[0]!r}; choose one of {', '.join(BENCHES)}")
    started = time.perf_counter()
    figures = BENCHES[words[0]](words[1:], __doc__ or "")
    if figures is not None:
        seconds = time.perf_counter() - started
        print(
            json.dumps({"bench": words[0], **figures, "seconds": seconds, "versions": _versions()})
        )


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


if __name__ == "__main__":
    exit_on_user_error(main)
