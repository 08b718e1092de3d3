"""Benchmarks, one subcommand each; `tools/bench.py NAME --help` explains its flags.

    python tools/bench.py zve [--json]      zero-variance stages on known pass rates, no model
    python tools/bench.py gen [--json]      generation against transformers

With --json the last line is one JSON object with at least `ratio`, its `limit` and `versions`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from compass.cli import exit_on_user_error
from compass.errors import UserError

BENCHES: Mapping[str, str] = MappingProxyType({"gen": "bench_gen", "zve": "bench_zve"})
"""Subcommand and the module beside this file that holds it; each has a `run` of type `Bench`.
Imported when named: one needs models and transformers, which take longer to import than another
takes to run."""


class Bench(Protocol):
    """Takes its flags and this file's description; prints its tables, and returns the figures if
    they are wanted as JSON."""

    def __call__(self, argv: Sequence[str], description: str) -> Mapping[str, Any] | None: ...


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
    run: Bench = importlib.import_module(BENCHES[words[0]]).run
    figures = run(words[1:], __doc__ or "")
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
