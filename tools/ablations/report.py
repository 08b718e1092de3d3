"""What an ablation found: numbers of each run, mean and range over seeds, table and curves.

Everything is read from the `metrics.jsonl` of the runs, so a report can be made again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""One line of metrics.jsonl."""

CURVES = (
    "eval/held_out/accuracy",
    "reward/mean",
    "zv/frac_flat",
    "actor/pg_clipfrac",
    "actor/cut_grad_frac",
    "actor/entropy",
    "response_length/mean",
)
"""Metrics that get a picture."""

LAST_STEPS = 10
"""Steps over which lengths are averaged, and a run without evaluation is judged: one batch is
noisy."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Numbers of one run. Built by `run_result`; None where there is nothing to say."""

    seed: int
    accuracy: float | None
    """The last held-out accuracy; without evaluation, the mean reward of the last steps."""
    best_accuracy: float | None
    steps_to_target: float | None
    """Where the straight line between two judgements crosses the target, as the other two; None
    when it was not reached."""
    rollouts_to_target: float | None
    tokens_to_target: float | None
    flat_share: float | None
    """Mean over steps, after expansion."""
    rollouts_per_useful_group: float | None
    clip_fraction: float | None
    cut_gradient: float | None
    """Mean over steps of the share of the gradient that clipping cut off."""
    length: float | None
    """Tokens of a completion, mean of the last steps."""
    shaping_share: float | None
    """Of sum |A|, where verdicts agree; mean over steps."""
    steps: float
    rollouts: float
    tokens: float


NUMBERS = tuple(name for name in RunResult.__dataclass_fields__ if name != "seed")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One number over the seeds that have it. Built by `spread`."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """All seeds of one combination of settings."""

    label: str
    runs: tuple[RunResult, ...]

    def spread(self, name: str) -> Spread | None:
        """The number called `name` over seeds; None when no seed has it."""
        return spread([getattr(run, name) for run in self.runs])


def run_result(rows: Sequence[Row], seed: int, target: float | None) -> RunResult:
    """Numbers of one run from its metrics, in order of steps. Step 0 is an evaluation alone."""
    steps = [row for row in rows if row["step"] > 0]
    key = judged_by(rows)
    judged = [row for row in rows if row.get(key) is not None]
    at_end = judged[-1:] if key == "eval/held_out/accuracy" else judged[-LAST_STEPS:]
    useful = sum(_saved(row) for row in steps)
    rollouts = sum(_rollouts(row) for row in steps)
    return RunResult(
        seed=seed,
        accuracy=_mean([row[key] for row in at_end]),
        best_accuracy=max((row[key] for row in judged), default=None),
        steps_to_target=crossing([(row["step"], row[key]) for row in judged], target),
        rollouts_to_target=crossing(
            [(sum(map(_rollouts, _until(steps, row))), row[key]) for row in judged], target
        ),
        tokens_to_target=crossing(
            [(_tokens(_until(steps, row)), row[key]) for row in judged], target
        ),
        flat_share=_mean([row.get("zv/frac_flat") for row in steps]),
        rollouts_per_useful_group=rollouts / useful if useful else None,
        clip_fraction=_mean([row.get("actor/pg_clipfrac") for row in steps]),
        cut_gradient=_mean([row.get("actor/cut_grad_frac") for row in steps]),
        length=_mean([row.get("response_length/mean") for row in steps[-LAST_STEPS:]]),
        shaping_share=_mean([row.get("zv/shaping_share") for row in steps]),
        steps=len(steps),
        rollouts=rollouts,
        tokens=_tokens(steps),
    )


def crossing(points: Sequence[tuple[float, float]], target: float | None) -> float | None:
    """The cost at which the target is first reached, on straight lines between (cost, accuracy)
    points; the first point's where that is there already, and None where no point is."""
    reached = next((i for i, (_, y) in enumerate(points) if target is not None and y >= target), -1)
    if target is None or reached < 0:
        return None
    (x0, y0), (x1, y1) = points[max(0, reached - 1)], points[reached]
    return x1 if reached == 0 else x0 + (x1 - x0) * (target - y0) / (y1 - y0)


def judged_by(rows: Sequence[Row]) -> str:
    """The metric that decides: held-out accuracy where there is one, else the training reward."""
    evaluated = any(row.get("eval/held_out/accuracy") is not None for row in rows)
    return "eval/held_out/accuracy" if evaluated else "reward/mean"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and range of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    return Spread(mean=mean, low=min(known), high=max(known), count=len(known))


def as_json(cells: Sequence[CellResult], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report as JSON values."""
    return {
        "settings": dict(settings),
        "cells": [
            {
                "label": cell.label,
                "runs": [asdict(run) for run in cell.runs],
                "over_seeds": {
                    name: asdict(found)
                    for name in NUMBERS
                    if (found := cell.spread(name)) is not None
                },
            }
            for cell in cells
        ],
    }


def as_markdown(cells: Sequence[CellResult], target: float | None, judge: str) -> str:
    """One row per cell: mean over seeds and [least, greatest]; `(k of n)` where only k seeds have
    the number, as with a target that some did not reach."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        (f"final {judge}", "accuracy", _decimals(3)),
        ("best", "best_accuracy", _decimals(3)),
        ("flat share", "flat_share", _decimals(2)),
        ("rollouts per useful group", "rollouts_per_useful_group", _decimals(1)),
        ("clip fraction", "clip_fraction", _decimals(4)),
        ("cut gradient", "cut_gradient", _decimals(2)),
        ("length", "length", _decimals(1)),
        ("shaping share", "shaping_share", _decimals(3)),
        ("steps", "steps", _decimals(0)),
        ("tokens", "tokens", _thousands),
    ]
    if target is not None:
        columns[2:2] = [
            (f"steps to {target:g}", "steps_to_target", _decimals(1)),
            (f"rollouts to {target:g}", "rollouts_to_target", _thousands),
            (f"tokens to {target:g}", "tokens_to_target", _thousands_and_tenths),
        ]
    titles = ["", *(title for title, _, _ in columns)]
    lines = [_line(titles), _line(["---"] + ["---:"] * len(columns))]
    for cell in cells:
        values = [_shown(cell.spread(name), len(cell.runs), show) for _, name, show in columns]
        lines.append(_line([cell.label, *values]))
    return "\n".join(lines) + "\n"


def plot_curves(curves: Mapping[str, Sequence[Sequence[Row]]], metric: str, file: Path) -> bool:
    """Draw `metric` against generated tokens: a thin line per seed, a bold one for their mean where
    all seeds have data. False, and no file, when no run logged it.

    Args:
        curves: metrics of every seed, by cell.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for index, (label, seeds) in enumerate(curves.items()):
        lines = [(x, y) for x, y in (_points(rows, metric) for rows in seeds) if x]
        if not lines:
            continue
        drawn = True
        colour = f"C{index % 10}"
        for x, y in lines:
            axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
        shared = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), 100)
        mean = np.mean([np.interp(shared, x, y) for x, y in lines], axis=0)
        style = "-" if index < 10 else "--"
        axes.plot(shared, mean, style, color=colour, linewidth=2, label=label)
    if drawn:
        axes.set_xlabel("generated tokens")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, dpi=120)
    return drawn


def _points(rows: Sequence[Row], metric: str) -> tuple[list[float], list[float]]:
    known = [row for row in rows if row.get(metric) is not None]
    return [row.get("perf/tokens_total", 0.0) for row in known], [row[metric] for row in known]


def _until(steps: Sequence[Row], row: Row) -> Sequence[Row]:
    return [step for step in steps if step["step"] <= row["step"]]


def _saved(row: Row) -> float:
    return row.get("zv/base/saved", 0.0) + row.get("zv/expand/saved", 0.0)


def _rollouts(row: Row) -> float:
    return row.get("zv/base/rollouts", 0.0) + row.get("zv/expand/rollouts", 0.0)


def _tokens(rows: Sequence[Row]) -> float:
    return rows[-1].get("perf/tokens_total", 0.0) if rows else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    found = spread(values)
    return found.mean if found else None


def _decimals(count: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{count}f}"


def _thousands(value: float) -> str:
    return f"{value / 1000:.0f}k"


def _thousands_and_tenths(value: float) -> str:
    return f"{value / 1000:.1f}k"


def _shown(found: Spread | None, num_runs: int, show: Callable[[float], str]) -> str:
    if found is None:
        return "never"
    text = show(found.mean)
    if found.count > 1:
        text += f" [{show(found.low)}, {show(found.high)}]"
    return text if found.count == num_runs else f"{text} ({found.count} of {num_runs})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
