"""Phase 1 at debug size: sums, programs and lists for one small model, in files.

The order of the SFT rows is the point, as in the demo (`compass.gym.domains.chain_data`): careful
demonstrations first, careless ones mixed in late, so that the model can do each task and often does
not. That is the room RL has.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compass.errors import UserError
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.datasets import save_prompts
from compass.gym.generated.lists import draw_list
from compass.gym.generated.programs import draw_program
from compass.gym.generated.sums import draw_sum
from compass.gym.generated.task import Draw, draw_tasks, prompt_of
from compass.jsonl import write_jsonl
from compass.types import Prompt

KINDS: Mapping[str, Draw] = MappingProxyType(
    {"math": draw_sum, "code": draw_program, "instructions": draw_list}
)
"""What is drawn for each domain."""

SFT_TURNS = ("math", "instructions", "math", "code")
"""Domains of the SFT rows, over and over: adding up takes longest to learn."""


@dataclass(frozen=True, kw_only=True)
class Phase1DataConfig:
    """Sizes and mixtures of the three-domain debug task."""

    num_sft_rows: int = 36000
    """Demonstrations in the order of training, half of them sums."""
    careful_share: float = 0.7
    """Share of the rows, from the first, that are careful throughout."""
    careless_share: float = 0.6
    """Share of careless demonstrations after that."""
    num_rl_prompts: int = 256
    """RL prompts of each domain."""
    num_eval_prompts: int = 128
    """Held-out prompts of each domain, all different."""

    def __post_init__(self) -> None:
        for name in ("careful_share", "careless_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        for name in ("num_sft_rows", "num_rl_prompts", "num_eval_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


def sft_rows(config: Phase1DataConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Conversations in training order, domains in turn."""
    rng = random.Random(f"phase1-sft-{seed}")
    tasks = {
        domain: draw_tasks(draw, rng, held_out=False, distinct=False)
        for domain, draw in KINDS.items()
    }
    for index in range(config.num_sft_rows):
        task = next(tasks[SFT_TURNS[index % len(SFT_TURNS)]])
        late = index >= config.careful_share * config.num_sft_rows
        careless = late and rng.random() < config.careless_share
        yield {
            "id": f"phase1/sft/{index}",
            "messages": [
                {"role": "user", "content": task.question},
                {"role": "assistant", "content": task.careless if careless else task.careful},
            ],
        }


def prompts(config: Phase1DataConfig, domain: str, seed: int, *, held_out: bool) -> list[Prompt]:
    """Different prompts of one domain, from one side of the split.

    Errors: `UserError` when the domain has not that many.
    """
    wanted = config.num_eval_prompts if held_out else config.num_rl_prompts
    side = "eval" if held_out else "rl"
    rng = random.Random(f"phase1-{domain}-{side}-{seed}")
    tasks = list(islice(draw_tasks(KINDS[domain], rng, held_out=held_out, distinct=True), wanted))
    if len(tasks) < wanted:
        raise UserError(
            f"{domain} has only {len(tasks)} {side} prompts of the {wanted} asked for; "
            "ask for fewer"
        )
    return [prompt_of(task, f"{domain}/{side}/{index}") for index, task in enumerate(tasks)]


def write_phase1_data(config: Phase1DataConfig, directory: str | Path, seed: int) -> None:
    """Write sft.jsonl, rl_DOMAIN.jsonl and eval_DOMAIN.jsonl of each domain, and tokenizer/; the
    same seed writes the same bytes."""
    directory = Path(directory)
    files = {
        f"{'eval' if held_out else 'rl'}_{domain}.jsonl": prompts(
            config, domain, seed, held_out=held_out
        )
        for domain in KINDS
        for held_out in (False, True)
    }  # errors come before files
    write_byte_tokenizer(directory / "tokenizer")
    write_jsonl(directory / "sft.jsonl", sft_rows(config, seed))
    for name, rows in files.items():
        save_prompts(directory / name, rows)
