"""Run folders for reports: small, hostile, and wrong in one way each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compass.rollouts.schema import FOLDER
from compass.rollouts.writer import RolloutFiles
from compass.text.tokenizer import Tokenizer
from tests.rollouts.steps import random_step

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<a href='javascript:window.hacked = 1'>x</a><style>body { display: none }</style>",
    "\u202e\u0000\u0007 \u05e9\u05dc\u05d5\u05dd \ud800 @DATA@ ]]> <!-- ${window.hacked = 1}",
    "https://example.org/x.png " + "x" * 100_000,
)


def write_metrics(run_dir: Path, curves: Mapping[str, list[float]]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    num_steps = max(map(len, curves.values()))
    rows = [
        {"step": i + 1} | {key: values[i] for key, values in curves.items() if i < len(values)}
        for i in range(num_steps)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def write_rollouts(run_dir: Path, tokenizer: Tokenizer, *, steps: int = 3, **sizes: int) -> None:
    """Rollouts whose prompts, answers and reasons are hostile."""
    files = RolloutFiles(run_dir / FOLDER, tokenizer, keep_steps=10**6, last_step=0, is_main=True)
    for step in range(1, steps + 1):
        record = random_step(step, **sizes)
        judged = [
            j._replace(
                answer=HOSTILE[i % len(HOSTILE)],
                domain=HOSTILE[(i + 1) % 3],
                rollout=replace(
                    j.rollout,
                    prompt_id=HOSTILE[j.group % len(HOSTILE)],
                    score=replace(j.rollout.score, reason=HOSTILE[(i + 2) % len(HOSTILE)]),
                ),
            )
            for i, j in enumerate(record.judged)
        ]
        files.put(replace(record, judged=judged))
    files.drain()
    files.close()
