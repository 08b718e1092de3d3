"""Score completions from a file with the verifiers and worker processes that training uses.

    python tools/score.py --domain math --input completions.jsonl --output scores.jsonl

Input lines: {"id", "answer", "completion"}; `finished` (default true) says whether the model
stopped by itself, `thinking_open` (default: the flag of that name) whether its prompt ended inside
`<think>`, and every further field is handed to the verifier. Output lines, in input
order: {"id", "verdict", "reward", "valid", "reason", "breakdown"}. A line whose verifier hangs or
dies comes back with valid = false and a reason; it holds nothing up. A function of your own that
takes `completions` is called once for all lines of an id.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.errors import UserError
from compass.gym.datasets import answer_of, identifier_of
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.reward import domain_named
from compass.gym.rewards.scorer import check_rewards, own_reward
from compass.jsonl import write_jsonl
from compass.rows import read_rows
from compass.types import Prompt, Score

_OWN_FIELDS = frozenset({"id", "answer", "completion", "finished", "thinking_open"})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to score and how."""

    domain: str | None = None
    """Verifier to use: math, code, instructions, ... (docs/gym.md)."""
    reward: str | None = None
    """A reward function of your own instead, `path/file.py:function`."""
    input: Path
    """JSONL file of completions."""
    output: Path
    """JSONL file of scores; replaced only when all lines are scored."""
    thinking_open: bool = False
    """The prompts as they were rendered ended inside `<think>`, so that completions begin there:
    one without `</think>` is all thinking. A line may say otherwise of itself."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """The worker processes."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One line of the input."""

    prompt: Prompt
    completion: str
    finished: bool
    thinking_open: bool


def main() -> None:
    """Parse the command line, score every line, write the scores."""
    config = parse(Config, sys.argv[1:], description=__doc__ or "")
    if (config.domain is None) == (config.reward is None):
        raise UserError("give one of --domain NAME and --reward path/file.py:function")
    if config.domain is not None:
        domain_named(config.domain)
    if not config.output.parent.is_dir():  # before the work, not after it
        raise UserError(f"no folder {config.output.parent} for the output; make it first")
    submissions = _read(config)
    scores = _score(submissions, config)
    rows = [
        _output_row(one.prompt.id, score) for one, score in zip(submissions, scores, strict=True)
    ]
    write_jsonl(config.output, rows)
    num_valid = sum(score.valid for score in scores)
    num_right = sum(score.verdict == 1 for score in scores if score.valid)
    print(f"{len(rows)} scored: {num_right} right, {len(rows) - num_valid} without a verdict")


def _read(config: Config) -> list[Submission]:
    submissions = []
    for where, row in read_rows(config.input):
        try:
            submissions.append(_submission(row, config))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return submissions


def _submission(row: Mapping[str, Any], config: Config) -> Submission:
    completion = row.get("completion")
    if not isinstance(completion, str):
        raise UserError(f"`completion` is {completion!r}; it must be the model's text")
    prompt = Prompt(
        id=identifier_of(row),
        messages=(),
        answer=answer_of(row),
        domain=config.domain or "own",
        extra={name: value for name, value in row.items() if name not in _OWN_FIELDS},
    )
    return Submission(
        prompt=prompt,
        completion=completion,
        finished=_flag(row, "finished", True),
        thinking_open=_flag(row, "thinking_open", config.thinking_open),
    )


def _flag(row: Mapping[str, Any], name: str, default: bool) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"`{name}` is {value!r}; it must be true or false")
    return value


def _score(submissions: list[Submission], config: Config) -> list[Score]:
    domains = [] if config.domain is None else [config.domain]
    pool_config = config.pool
    if config.reward is not None:
        pool_config = replace(pool_config, rewards=own_reward(config.reward))
        check_rewards(pool_config.rewards)
    with VerifierPool(pool_config, domains=domains) as pool:
        for index, one in enumerate(submissions):
            pool.submit_text(
                index,
                one.prompt,
                one.completion,
                finished=one.finished,
                thinking_open=one.thinking_open,
            )
        by_index = dict(pool.drain())
        scores = [by_index[index] for index in range(len(submissions))]
        return _look_at_groups(pool, submissions, scores)


def _look_at_groups(
    pool: VerifierPool, submissions: list[Submission], scores: list[Score]
) -> list[Score]:
    """The scores with those rewards that look at all lines of an id together."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(submissions):
        if pool.looks_at_groups(one.prompt.domain):
            groups.setdefault(one.prompt.id, []).append(index)
    for name, lines in groups.items():
        pool.submit_group(
            name,
            submissions[lines[0]].prompt,
            [submissions[i].completion for i in lines],
            [scores[i] for i in lines],
        )
    looked_at = {
        i: score
        for name, of_group in pool.drain_groups()
        for i, score in zip(groups[str(name)], of_group, strict=True)
    }
    return [looked_at.get(index, score) for index, score in enumerate(scores)]


def _output_row(name: str, score: Score) -> dict[str, Any]:
    return {
        "id": name,
        "verdict": score.verdict,
        "reward": score.reward,
        "valid": score.valid,
        "reason": score.reason,
        "breakdown": dict(score.breakdown),
    }


if __name__ == "__main__":
    exit_on_user_error(main)
