"""Write the demo task's data: SFT rows, RL prompts, held-out problems and a tokenizer.

    python tools/make_chain.py --output runs/demo/data --seed 0

The task itself is `compass/gym/domains/chain.py`. Sizes and mixtures are flags: see --help.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.gym.domains.chain_data import ChainDataConfig, write_chain_data


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write and where."""

    output: Path
    """Folder for sft.jsonl, rl.jsonl, eval.jsonl and tokenizer/; made if needed."""
    seed: int = 0
    """Another seed draws other problems; no seed moves one between training and evaluation."""
    data: ChainDataConfig = field(default_factory=ChainDataConfig)
    """Sizes and mixtures."""


def main() -> None:
    """Parse the command line and write the files."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    write_chain_data(config.data, config.output, config.seed)
    print(f"wrote sft.jsonl, rl.jsonl, eval.jsonl and tokenizer/ to {config.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
