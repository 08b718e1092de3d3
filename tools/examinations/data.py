"""How is a prompt file read, and what will the model see?

python tools/doctor.py data prompts.jsonl --tokenizer Qwen3-30B-A3B
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.errors import UserError
from compass.gym.datasets import ANSWER_PLACES, TEXT_FIELDS, load_prompts
from compass.rl.encoded_prompts import EncodedPrompts
from compass.rows import read_rows
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt

READ_AS: Mapping[str, str] = {
    "id": "the prompt's name",
    "messages": "the conversation",
    **dict.fromkeys(TEXT_FIELDS, "the user's message"),
    "answer": "what the verifier compares with",
    **dict.fromkeys(
        (place[0] for place in ANSWER_PLACES[1:]), "the answer, where no other column has it"
    ),
    **dict.fromkeys(("extra_info", "index", "example_id"), "the prompt's name, where `id` is not"),
    "options": "asked below the question",
    "tools": "functions, for the chat template",
    "input": "the user's message, where no other column has it",
    "domain": "which verifier",
    "difficulty": "difficulty",
    "lang": "language",
}
"""What is made of a column; of all others, what the last line of the table says."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Flags of `tools/doctor.py data`."""

    file: Path
    """The prompt file, or a glob; the first word after `data`."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; with it, lengths in tokens and the prompt as it is fed."""
    raw: bool = False
    """Feed prompts as they stand, without the chat template."""


def run(argv: Sequence[str]) -> None:
    """Print how the file is read; it is refused as a recipe would refuse it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--file", *argv]
    cfg = parse(DataConfig, argv, description=__doc__ or "")
    prompts = load_prompts(cfg.file, raw=cfg.raw)
    if not prompts:
        raise UserError(f"{cfg.file} holds no prompt; each line is one JSON object")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(columns_table([row for _, row in read_rows(cfg.file)]))
    console.print(summary(prompts))
    first = prompts[0].messages[-1]["content"]
    if cfg.tokenizer is not None:
        tokenizer = Tokenizer.from_dir(cfg.tokenizer)
        encoded = EncodedPrompts(tokenizer)
        encoded.add(prompts)
        ids = [encoded.of(prompt) for prompt in prompts]
        console.print(lengths([len(of_prompt) for of_prompt in ids]))
        first = tokenizer.decode(ids[0])
    console.print(f"\nthe first prompt as the model will see it ({prompts[0].id}):\n{first}")


def columns_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each column, how many rows have it, and what it is read as."""
    counts = Counter(name for row in rows for name, value in row.items() if value is not None)
    table = Table(title=f"{len(rows)} rows")
    for column in ("column", "rows", "read as", "first value"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for name, count in counts.items():
        first = next(row[name] for row in rows if row.get(name) is not None)
        read_as = READ_AS.get(name, "kept for the verifier")
        table.add_row(name, str(count), read_as, _shortened(repr(first)))
    return table


def summary(prompts: Sequence[Prompt]) -> str:
    """Counts by domain, and prompts without an answer."""
    domains = Counter(prompt.domain for prompt in prompts)
    by_domain = ", ".join(f"{count} {domain}" for domain, count in domains.most_common())
    unanswered = sum(prompt.answer is None for prompt in prompts)
    return f"{len(prompts)} prompts: {by_domain}; {unanswered} without an answer"


def lengths(num_tokens: Sequence[int]) -> str:
    """Of the prompts, in tokens."""
    return (
        f"prompt lengths in tokens: {min(num_tokens)} to {max(num_tokens)}, "
        f"median {median(num_tokens):.0f}, {sum(num_tokens)} in all"
    )


def _shortened(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
