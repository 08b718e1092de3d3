"""One page about one or several runs: curves, stages, routers, times, and every rollout in colour.

    python tools/report.py runs/demo/rl --output report.html
    python tools/report.py runs/seed_0 runs/seed_1 runs/other --output report.html

The page loads nothing from anywhere: it can be mailed. A run may be under way, killed or damaged;
the page shows what there is and says what is missing (docs/report.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.manifest import write_whole
from compass.report.content import content
from compass.report.page import assemble
from compass.report.run import named_apart, read_run
from compass.report.sample import sample_rollouts


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which runs, and how much of them."""

    runs: tuple[Path, ...]
    """Folders of runs; they may come first, without the flag."""
    output: Path = Path("report.html")
    """The page; replaced only when it is whole."""
    max_rollouts: int = 5000
    """Rollouts that the page holds, in whole groups, of steps spread over the runs."""
    max_tokens: int = 5_000_000
    """Their tokens at most."""

    def __post_init__(self) -> None:
        for name in ("max_rollouts", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.runs:
            raise UserError("name the folder of a run: tools/report.py RUN --output report.html")


def main(cfg: Config) -> None:
    """Write the page."""
    names = named_apart(cfg.runs)
    runs = [replace(read_run(path), name=n) for path, n in zip(cfg.runs, names, strict=True)]
    sample = sample_rollouts(runs, max_rollouts=cfg.max_rollouts, max_tokens=cfg.max_tokens)
    page = assemble(content(runs, names, sample), sample.blocks)
    write_whole(cfg.output, page)
    print(f"{cfg.output}: {len(page) / 1e6:.1f} MB, {len(sample.columns['run'])} rollouts")


def with_runs_named(words: Sequence[str]) -> list[str]:
    """The command line with a flag before the folders that come first."""
    folders = list(takewhile(lambda word: not word.startswith("-"), words))
    return [*(["--runs", *folders] if folders else []), *words[len(folders) :]]


if __name__ == "__main__":
    words = with_runs_named(sys.argv[1:])
    exit_on_user_error(lambda: main(parse(Config, words, description=__doc__ or "")))
