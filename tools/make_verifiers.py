"""Write a prompt file of a taskset of the verifiers package, judged by the taskset's own rewards.

    python tools/make_verifiers.py --taskset my-taskset --size 2000 --output prompts.jsonl \\
        --taskset_config '{"split": "train"}'

Takes an environment of its own, with compass-rl[verifiers] and the taskset's package.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.jsonl import write_jsonl


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which tasks to read and where to write them."""

    taskset: str
    """Id of an installed taskset; of `owner/name@version` the name is imported."""
    output: Path
    """Prompt file to write."""
    size: int = 1000
    """Tasks, from the first."""
    taskset_config: str = "{}"
    """The taskset's own settings, as a JSON object."""


def main() -> None:
    """Load the taskset, check that its tasks need nothing but an answer, write."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    from compass.gym.tasksets import rows

    written = list(rows(config.taskset, _json_object(config.taskset_config), config.size))
    write_jsonl(config.output, written)
    print(f"wrote {len(written)} prompts to {config.output}")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"taskset_config={text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"taskset_config={text!r} must be a JSON object of settings")
    return value


if __name__ == "__main__":
    exit_on_user_error(main)
