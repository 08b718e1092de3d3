"""Benchmarks, one subcommand each; `tools/bench.py NAME --help` explains its flags.

    python tools/bench.py step [--json]     one whole RL step against TRL
    python tools/bench.py gen [--json]      generation against transformers
    python tools/bench.py reward [--json]   rewards scored beside generation, against after it
    python tools/bench.py gym [--json]      verdicts/s; isolated programs against bare interpreters
    python tools/bench.py pack [--json]     padding and imbalance of the update over ranks
    python tools/bench.py replay [--json]   what recording and replaying routes cost
    python tools/bench.py detok [--json]    decoding text off the generator's thread
    python tools/bench.py scale [--json]    decoding speed over batch sizes, and its cost model
    python tools/bench.py sync [--json]     refreshing the generator's weights
    python tools/bench.py cuda [--json]     kernels, decoding and training on a CUDA device
    python tools/bench.py zve [--json]      zero-variance stages on known pass rates, no model
    python tools/bench.py weights [--json]  what a prompt weighs where flat groups grow, no model

With --json the last line is one JSON object with at least `bench`, `ratio`, the `limit` below which
`ratio` must not fall, `seconds` the benchmark took, and `versions`.
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

BENCHES: Mapping[str, str] = MappingProxyType(
    {
        "step": "benches.step",
        "gen": "benches.gen",
        "reward": "benches.reward",
        "gym": "benches.gym",
        "pack": "benches.pack",
        "replay": "benches.replay",
        "detok": "benches.detok",
        "scale": "benches.scale",
        "sync": "benches.sync",
        "cuda": "benches.cuda",
        "zve": "benches.zve",
        "weights": "benches.weights",
    }
)
"""Subcommand and the module that holds it; each has a `run` of type `Bench`.
Imported when named: one needs models and transformers, which take longer to import than another
takes to run."""


class Bench(Protocol):
    """Takes its flags and this file's description; prints its tables, and returns the figures if
    they are wanted as JSON: `ratio` (a peer's time over ours, or what its docstring says), `limit`,
    `ratio_<peer>` for each further peer, and the raw figures behind them."""

    def __call__(self, argv: Sequence[str], description: str) -> Mapping[str, Any] | None: ...


PACKAGES = ("compass-rl", "torch", "torchtitan", "triton", "transformers", "trl")
"""Reported with their versions, where they are installed."""


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
        assert {"ratio", "limit"} <= figures.keys(), f"{words[0]} broke the contract"
        seconds = time.perf_counter() - started
        print(
            json.dumps({"bench": words[0], **figures, "seconds": seconds, "versions": versions()})
        )


def versions() -> dict[str, str]:
    """Of python and of those of `PACKAGES` that are here."""
    found = {d.name for d in importlib.metadata.distributions()} & set(PACKAGES)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES if name in found}
    return {"python": platform.python_version(), **packages}


if __name__ == "__main__":
    exit_on_user_error(main)
