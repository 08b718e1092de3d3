"""The columns of a rollout file (docs/report.md), and its name."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

FOLDER = "rollouts"
"""In a run's folder."""
VERSION = 1
"""Of the schema; columns may be added without a new one."""
METADATA_KEY = b"compass"
"""Of what a file says of its step as a whole, as JSON."""
_NAME = re.compile(r"step_(\d+)\.rank_(\d+)\.parquet")

_FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("writer", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("expected", pa.string()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("completion_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("pieces", pa.list_(pa.dictionary(pa.int32(), pa.binary())), nullable=False),
        pa.field("turns", pa.list_(pa.struct({"role": pa.string(), "begin": pa.int32()}))),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("policy_version", pa.int32(), nullable=False),
        pa.field("repetition", pa.float64(), nullable=False),
        pa.field("valid", pa.bool_(), nullable=False),
        pa.field("verdict", pa.float64()),
        pa.field("reward", pa.float64()),
        pa.field("shaped_reward", pa.float64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("breakdown", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("verifier_seconds", pa.float64(), nullable=False),
        pa.field("saved_by", pa.string(), nullable=False),
        pa.field("added", pa.bool_(), nullable=False),
        pa.field("advantage", pa.float64(), nullable=False),
        pa.field("minibatch", pa.int32()),
        pa.field("rollout_logprobs", _FLOATS, nullable=False),
        pa.field("trainer_logprobs", _FLOATS),
        pa.field("entropies", _FLOATS),
        pa.field("advantages", _FLOATS),
        pa.field("flips", pa.list_(pa.int16())),
    ]
)


def file_name(step: int, rank: int) -> str:
    """Of what a rank wrote in a step."""
    return f"step_{step:06}.rank_{rank:04}.parquet"


def step_and_rank(path: Path) -> tuple[int, int] | None:
    """What `file_name` was made of; None for any other file."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else None
