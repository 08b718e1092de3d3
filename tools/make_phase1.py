"""Write the data of phase 1 at debug size: sums, programs and lists under constraints.

    python tools/make_phase1.py --output runs/phase1/data --seed 0

SFT rows of all three, RL prompts and held-out prompts of each, and a tokenizer. What is drawn is in
`compass/gym/generated/`; sizes and mixtures are flags: see --help.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.gym.generated.phase1 import Phase1DataConfig, write_phase1_data


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write and where."""

    output: Path
    """Folder for the files; made if needed."""
    seed: int = 0
    """Another seed draws other tasks; no seed moves one between training and evaluation."""
    data: Phase1DataConfig = field(default_factory=Phase1DataConfig)
    """Sizes and mixtures."""


def main() -> None:
    """Parse the command line and write the files."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    write_phase1_data(config.data, config.output, config.seed)
    print(f"wrote sft.jsonl, prompts and held-out prompts of each domain to {config.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
