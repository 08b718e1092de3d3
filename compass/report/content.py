"""Everything that a page shows, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compass.report.rules import findings
from compass.report.run import RunData
from compass.report.sample import Sample, spread
from compass.report.tokens import (
    GAP_DECADES,
    GAP_STEPS,
    LOGPROB_STEPS,
    MAX_ADVANTAGE,
    MAX_ENTROPY,
    ROLLOUTS_PER_BLOCK,
)

MAX_POINTS = 1000
"""Of a curve; of a longer run every so manyth step is shown."""
MAX_STEPS_IN_DETAIL = 20
"""Steps whose phases and expert load are shown, spread over the run."""
LENGTH_BINS = 24
"""Of the histogram of lengths, equal in logarithm."""
STAGES = ("prefilter", "base", "expand", "reshape", "residual")


def content(runs: Sequence[RunData], names: Sequence[str], sample: Sample) -> dict[str, Any]:
    """Of the page; `names` tell the runs apart."""
    families = list(dict.fromkeys(run.family for run in runs))
    return {
        "runs": [
            _run(run, name, families.index(run.family), unread)
            for run, name, unread in zip(runs, names, sample.unread, strict=True)
        ],
        "prompts": sample.prompts,
        "rollouts": sample.columns,
        "leftOut": sample.num_left_out,
        "codes": {
            "perBlock": ROLLOUTS_PER_BLOCK,
            "logprobSteps": LOGPROB_STEPS,
            "maxEntropy": MAX_ENTROPY,
            "maxAdvantage": MAX_ADVANTAGE,
            "gapDecades": GAP_DECADES,
            "gapSteps": GAP_STEPS,
        },
    }


def _run(run: RunData, name: str, family: int, unread: Sequence[str]) -> dict[str, Any]:
    every = -(-len(run.steps) // MAX_POINTS) or 1
    detailed = sorted(spread(run.rollouts.steps)[:MAX_STEPS_IN_DETAIL])
    return {
        "name": name,
        "family": family,
        "seed": run.seed,
        "missing": [*run.missing, *unread],
        "findings": [vars(finding) for finding in findings(run)],
        "steps": list(run.steps[::every]),
        "every": every,
        "metrics": {key: _rounded(values[::every]) for key, values in run.metrics.items()},
        "ledger": _ledger(run),
        "phases": {step: _phases(run, step) for step in detailed},
        "load": {step: _load(run, step) for step in detailed},
        **_lengths_and_savings(run),
    }


def _ledger(run: RunData) -> dict[str, dict[str, float]]:
    """The account of all steps logged, by stage."""
    return {
        stage: {name: run.total(f"zv/{stage}/{name}") for name in ("in", "saved", "out", "tokens")}
        for stage in STAGES
        if f"zv/{stage}/in" in run.metrics
    }


def _phases(run: RunData, step: int) -> list[dict[str, Any]]:
    return [
        {
            "rank": file.rank,
            "spans": [[n, round(b, 4), round(e, 4)] for n, b, e in file.told["spans"]],
        }
        for file in run.rollouts.files
        if file.step == step
    ]


def _load(run: RunData, step: int) -> list[list[float]]:
    """Of each layer and expert, over what an even load would be; no layer where there is none."""
    loads = [np.array(f.told["expert_load"]) for f in run.rollouts.files if f.step == step]
    loads = [load for load in loads if load.size]
    if not loads:
        return []
    load_LE = np.sum(loads, axis=0)
    relative_LE = load_LE / np.maximum(load_LE.mean(axis=1, keepdims=True), 1e-9)
    return np.round(relative_LE, 3).tolist()


def _lengths_and_savings(run: RunData) -> dict[str, Any]:
    """Of every step on disk, a histogram of completion lengths; and tokens by what made their
    group train."""
    by_step: dict[int, list[int]] = {}
    saved: dict[str, int] = {}
    for file in run.rollouts.files:
        for length, saved_by in file.lengths():
            by_step.setdefault(file.step, []).append(length)
            saved[saved_by] = saved.get(saved_by, 0) + length
    longest = max((max(of_step) for of_step in by_step.values()), default=1)
    edges = np.unique(np.geomspace(1, longest + 1, LENGTH_BINS + 1).round().astype(int))
    return {
        "savedTokens": saved,
        "lengths": {
            "steps": list(by_step),
            "edges": edges.tolist(),
            "counts": [np.histogram(of_step, edges)[0].tolist() for of_step in by_step.values()],
        },
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in values]
