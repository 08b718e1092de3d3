"""Which rollouts a page holds, and what it says of each without opening it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from compass.errors import UserError
from compass.report.run import RunData
from compass.report.tokens import ROLLOUTS_PER_BLOCK, TokenColumns, encode_block, token_columns

_SCALARS = (
    *("group", "sample", "verdict", "reward", "shaped_reward", "advantage", "finish_reason"),
    *("reason", "answer", "saved_by", "added", "minibatch", "policy_version", "verifier_seconds"),
    *("repetition", "writer"),
)
"""Columns that the page's list of rollouts has as they are."""
_PROMPT = ("prompt_id", "domain", "expected", "prompt")
_TOKENS = ("pieces", "rollout_logprobs", "trainer_logprobs", "entropies", "advantages", "flips")


MAX_CHARACTERS = 2000
"""Of an answer or a reason in the page; on disk it is whole."""


class Row(NamedTuple):
    """A rollout of the page."""

    step: int
    told: dict[str, Any]
    tokens: TokenColumns

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.sizes)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The page's rollouts. Built by `sample_rollouts`."""

    prompts: list[dict[str, Any]]
    columns: dict[str, list[Any]]
    """One entry per rollout, by run, step, group and sample."""
    blocks: list[str]
    """Base64; each of `ROLLOUTS_PER_BLOCK` rollouts, in order."""
    num_left_out: int
    """Rollouts on disk that the page does not hold."""
    unread: list[list[str]]
    """Of each run, files that were damaged behind their footers."""


def sample_rollouts(runs: Sequence[RunData], *, max_rollouts: int, max_tokens: int) -> Sample:
    """Whole groups, from steps spread over each run, until either limit."""
    rows: list[tuple[int, Row]] = []
    unread: list[list[str]] = []
    for number, run in enumerate(runs):
        notes: list[str] = []
        unread.append(notes)
        chosen = _within(
            _by_group(run, notes),
            max_rollouts=max_rollouts // len(runs),
            max_tokens=max_tokens // len(runs),
        )
        rows += [(number, row) for row in sorted(chosen, key=_place)]
    blocks = [
        encode_block([row.tokens for _, row in rows[first : first + ROLLOUTS_PER_BLOCK]])
        for first in range(0, len(rows), ROLLOUTS_PER_BLOCK)
    ]
    prompts, columns = _index(rows)
    on_disk = sum(file.num_rows for run in runs for file in run.rollouts.files)
    return Sample(
        prompts=prompts,
        columns=columns,
        blocks=[base64.b64encode(block).decode() for block in blocks],
        num_left_out=on_disk - len(rows),
        unread=unread,
    )


def spread(steps: Sequence[int]) -> list[int]:
    """The same steps, each as far as can be from those before it: the last, the first, the middle,
    and so on."""
    if len(steps) < 3:
        return list(reversed(steps))
    order, parts = [len(steps) - 1, 0], [(0, len(steps) - 1)]
    while parts:
        begin, end = parts.pop(0)
        if end - begin > 1:
            middle = (begin + end) // 2
            order.append(middle)
            parts += [(begin, middle), (middle, end)]
    return [steps[i] for i in order]


def _by_group(run: RunData, unread: list[str]) -> Iterator[list[Row]]:
    rho = _rho(run)
    for step in spread(run.rollouts.steps):
        rows: list[Row] = []
        for file in (file for file in run.rollouts.files if file.step == step):
            try:
                table = file.table()
            except UserError as error:
                unread.append(str(error))
                continue
            told = _told(table)
            tokens = token_columns(table.select(_TOKENS), rho=rho)
            rows += [Row(step, *pair) for pair in zip(told, tokens, strict=True)]
        rows.sort(key=_place)
        for _, members in groupby(rows, key=lambda row: row.told["group"]):
            yield list(members)


def _told(table: pa.Table) -> list[dict[str, Any]]:
    """Everything but what there is of each token."""
    trained = table["trainer_logprobs"].is_valid()
    return (
        table.select([*_SCALARS, *_PROMPT, "breakdown"])
        .append_column("trained", trained)
        .to_pylist()
    )


def _within(groups: Iterable[list[Row]], *, max_rollouts: int, max_tokens: int) -> list[Row]:
    rows: list[Row] = []
    num_tokens = 0
    for group in groups:
        num_tokens += sum(row.num_tokens for row in group)
        if rows and (len(rows) + len(group) > max_rollouts or num_tokens > max_tokens):
            break
        rows += group
    return rows


def _index(rows: Sequence[tuple[int, Row]]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    prompt_numbers: dict[tuple[Any, ...], int] = {}
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("run", "step", "prompt", "tokens", "bytes", "trained", "parts", *_SCALARS)
    }
    for run, row in rows:
        key = tuple(row.told[name] for name in _PROMPT)
        columns["run"].append(run)
        columns["step"].append(row.step)
        columns["prompt"].append(prompt_numbers.setdefault(key, len(prompt_numbers)))
        columns["tokens"].append(row.num_tokens)
        columns["bytes"].append(len(row.tokens.text))
        columns["trained"].append(row.told["trained"])
        columns["parts"].append(row.told["breakdown"])
        for name in _SCALARS:
            columns[name].append(_shortened(row.told[name]))
    prompts = [dict(zip(("id", *_PROMPT[1:]), key, strict=True)) for key in prompt_numbers]
    return prompts, columns


def _shortened(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= MAX_CHARACTERS:
        return value
    return f"{value[:MAX_CHARACTERS]}\u2026 ({len(value)} characters)"


def _place(row: Row) -> tuple[int, int, int]:
    return row.step, row.told["group"], row.told["sample"]


def _rho(run: RunData) -> float | None:
    """Of ESPO's two groups; None where the run had none."""
    espo = run.config.get("losses", {}).get("espo", {})
    if run.config.get("loss") != "espo" or espo.get("num_groups") != 2:
        return None
    return espo["rho"]
