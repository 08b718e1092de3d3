"""Write a tokenizer that needs no training: one token a byte, and a chat template. For models from
random weights; a model of somebody else's brings its own.

    python tools/make_tokenizer.py --output tokenizer
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.gym.byte_tokenizer import write_byte_tokenizer


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where to write it."""

    output: Path
    """Folder for tokenizer.json and tokenizer_config.json; made if needed."""


def main() -> None:
    """Parse the command line and write the files."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    try:
        write_byte_tokenizer(config.output)
    except OSError as error:
        raise UserError(f"cannot write {config.output}: {error.strerror}") from None
    print(f"wrote tokenizer.json and tokenizer_config.json to {config.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
