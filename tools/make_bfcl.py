"""Write a prompt file of domain `tools` from the Berkeley function-calling leaderboard's files.

    python tools/make_bfcl.py --questions BFCL_v4_parallel.json \\
        --answers possible_answer/BFCL_v4_parallel.json --output parallel.jsonl

Questions of irrelevance have no file of answers: leave `--answers` out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.gym.tool_calls.bfcl import bfcl_row
from compass.jsonl import read_jsonl, write_jsonl


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to read and where to write it."""

    questions: Path
    """BFCL's file of questions."""
    output: Path
    """Prompt file to write."""
    answers: Path | None = None
    """The file of possible answers with the same ids; left out, no call is right."""


def main() -> None:
    """Join the two files by their ids."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    answers = None
    if config.answers is not None:
        answers = {row.get("id"): row for _, row in read_jsonl(config.answers)}
    rows = []
    for where, question in read_jsonl(config.questions):
        possible = None if answers is None else answers.get(question.get("id"))
        if answers is not None and possible is None:
            raise UserError(f"{where}: {question.get('id')!r} has no answer in {config.answers}")
        try:
            rows.append(bfcl_row(question, possible))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    write_jsonl(config.output, rows)
    print(f"wrote {len(rows)} prompts to {config.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
