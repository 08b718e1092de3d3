"""The demo's files: SFT rows in training order, RL prompts, held-out problems, a tokenizer.

The order of the SFT rows is the point: the skill is learned from worked demonstrations first, and
terse ones come in late, so that the model can think but often does not. That is the room RL has.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from compass.errors import UserError
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.datasets import save_prompts
from compass.gym.domains.chain import ChainProblem, draw_from_side, draw_problems
from compass.jsonl import write_jsonl
from compass.types import Prompt


@dataclass(frozen=True, kw_only=True)
class ChainDataConfig:
    """Sizes and mixtures of the chain20 demo."""

    num_sft_problems: int = 8000
    """Problems behind the SFT rows."""
    sft_levels: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Their levels (numbers of terms), equally likely."""
    num_sft_steps: int = 600
    """SFT steps the file is written for."""
    sft_batch_size: int = 40
    """Rows of one SFT step."""
    num_worked_only_steps: int = 420
    """Steps at the start with worked demonstrations only."""
    terse_share: float = 0.65
    """Share of terse demonstrations after that."""
    rl_levels: tuple[int, ...] = (2, 4, 5, 6, 7, 8, 10, 12)
    """Levels of RL prompts and of held-out problems."""
    rl_level_weights: tuple[float, ...] = (1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0.6, 0.4)
    """Weight of each of `rl_levels`."""
    num_rl_prompts: int = 4096
    """RL prompts; a question repeats only where its level has too few."""
    num_eval_prompts: int = 512
    """Held-out problems, all different."""

    def __post_init__(self) -> None:
        if len(self.rl_levels) != len(self.rl_level_weights):
            raise UserError(
                f"rl_level_weights has {len(self.rl_level_weights)} entries for "
                f"{len(self.rl_levels)} rl_levels; give one weight for each level"
            )
        if not self.sft_levels or not self.rl_levels or min(self.sft_levels + self.rl_levels) < 1:
            raise UserError("levels are numbers of terms; give at least one, each 1 or more")
        if min(self.rl_level_weights) <= 0:
            raise UserError(f"rl_level_weights {self.rl_level_weights} must all be above 0")
        if not 0 <= self.terse_share <= 1:
            raise UserError(f"terse_share is {self.terse_share}; it must be between 0 and 1")
        if self.num_sft_problems < 1:
            raise UserError(f"num_sft_problems is {self.num_sft_problems}; it must be at least 1")


def sft_rows(config: ChainDataConfig, seed: int) -> Iterator[dict[str, Any]]:
    """`num_sft_steps * sft_batch_size` conversations in training order; passes over the problems
    are shuffled anew."""
    rng = random.Random(f"chain-sft-{seed}")
    problems = [
        draw_from_side(rng, rng.choice(config.sft_levels), held_out=False)
        for _ in range(config.num_sft_problems)
    ]
    order = _shuffled_passes(rng, problems)
    for index in range(config.num_sft_steps * config.sft_batch_size):
        problem = next(order)
        late = index >= config.num_worked_only_steps * config.sft_batch_size
        terse = late and rng.random() < config.terse_share
        yield {
            "id": f"chain/sft/{index}",
            "messages": [
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": problem.terse if terse else problem.worked},
            ],
        }


def _shuffled_passes(rng: random.Random, problems: list[ChainProblem]) -> Iterator[ChainProblem]:
    while True:
        yield from rng.sample(problems, len(problems))


def rl_prompts(config: ChainDataConfig, seed: int) -> list[Prompt]:
    """Training prompts with the RL mixture."""
    rng = random.Random(f"chain-rl-{seed}")
    problems = draw_problems(rng, _rl_mixture(config), held_out=False, distinct=False)
    return _prompts("rl", islice(problems, config.num_rl_prompts))


def eval_prompts(config: ChainDataConfig, seed: int) -> list[Prompt]:
    """Held-out prompts with the RL mixture, no question twice.

    Errors: `UserError` when the levels do not hold that many questions.
    """
    rng = random.Random(f"chain-eval-{seed}")
    problems = draw_problems(rng, _rl_mixture(config), held_out=True, distinct=True)
    prompts = _prompts("eval", islice(problems, config.num_eval_prompts))
    if len(prompts) < config.num_eval_prompts:
        raise UserError(
            f"levels {config.rl_levels} hold only {len(prompts)} held-out questions of the "
            f"{config.num_eval_prompts} asked for; lower num_eval_prompts or add levels"
        )
    return prompts


def _rl_mixture(config: ChainDataConfig) -> Mapping[int, float]:
    return dict(zip(config.rl_levels, config.rl_level_weights, strict=True))


def _prompts(split: str, problems: Iterable[ChainProblem]) -> list[Prompt]:
    return [
        Prompt(
            id=f"chain/{split}/{index}",
            messages=({"role": "user", "content": problem.question},),
            answer=str(problem.answer),
            domain="chain",
            difficulty=float(problem.level),
        )
        for index, problem in enumerate(problems)
    ]


def write_chain_data(config: ChainDataConfig, directory: str | Path, seed: int) -> None:
    """Write sft.jsonl, rl.jsonl, eval.jsonl and tokenizer/; the same seed writes the same bytes."""
    directory = Path(directory)
    rl, held_out = rl_prompts(config, seed), eval_prompts(config, seed)  # errors come before files
    write_byte_tokenizer(directory / "tokenizer")
    write_jsonl(directory / "sft.jsonl", sft_rows(config, seed))
    save_prompts(directory / "rl.jsonl", rl)
    save_prompts(directory / "eval.jsonl", held_out)
