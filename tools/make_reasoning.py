"""Write a prompt file of a reasoning_gym task, verified by the task itself in training.

    python tools/make_reasoning.py --task chain_sum --size 2000 --seed 0 --output prompts.jsonl \\
        --task_config '{"min_terms": 3, "max_terms": 6}'
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
from compass.gym.datasets import save_prompts
from compass.gym.domains.reasoning import make_prompts


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to generate and where to write it."""

    task: str
    """Name of the task; reasoning_gym lists about a hundred."""
    output: Path
    """Prompt file to write."""
    size: int = 1000
    """Prompts."""
    seed: int = 0
    """Another seed draws other prompts."""
    task_config: str = "{}"
    """The task's own parameters, as a JSON object."""


def main() -> None:
    """Generate, check that each reference answer scores 1, write."""
    cfg = parse(Config, sys.argv[1:], description=__doc__ or "")
    prompts = make_prompts(cfg.task, cfg.size, cfg.seed, **_json_object(cfg.task_config))
    save_prompts(cfg.output, prompts)
    print(f"wrote {len(prompts)} prompts to {cfg.output}")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"task_config={text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"task_config={text!r} must be a JSON object of parameters")
    return value


if __name__ == "__main__":
    exit_on_user_error(main)
