"""A run's metrics are complete, valid JSON, one line a step on the console, and continue after a
resume as if it had never stopped."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compass.errors import UserError
from compass.metrics import MetricsLogger, Stopwatch


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def records(run_dir: Path) -> list[dict]:
    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def logger(run_dir: Path, *, resumed_from: int | None = None, console=None, clock=None):
    return MetricsLogger(
        run_dir,
        enabled=True,
        total_steps=10,
        resumed_from=resumed_from,
        console=console or Console(file=io.StringIO()),
        clock=clock or Clock(),
    )


def test_a_step_goes_to_the_file_and_to_tensorboard(tmp_path):
    log = logger(tmp_path)
    log.log(1, {"reward/mean": 0.5, "actor/lr": 1e-6})
    assert records(tmp_path) == [{"step": 1, "reward/mean": 0.5, "actor/lr": 1e-6}]
    log.close()
    assert scalars(tmp_path, "reward/mean") == [(1, 0.5)]


def test_values_that_are_not_finite_are_null_in_the_file(tmp_path):
    log = logger(tmp_path)
    log.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    log.close()
    assert records(tmp_path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 1.0}]


def test_a_resumed_run_has_each_step_once(tmp_path):
    first = logger(tmp_path)
    for step in range(1, 6):
        first.log(step, {"x": float(step)})
    first.close()
    resumed = logger(tmp_path, resumed_from=3)
    for step in range(4, 8):
        resumed.log(step, {"x": 10.0 * step})
    resumed.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0), (7, 70.0)]
    assert [(r["step"], r["x"]) for r in records(tmp_path)] == expected
    assert scalars(tmp_path, "x") == expected


def test_a_fresh_run_starts_the_file_over(tmp_path):
    first = logger(tmp_path)
    first.log(0, {"x": 1.0})
    first.log(1, {"x": 1.0})
    first.close()
    logger(tmp_path).close()
    assert records(tmp_path) == []


def test_a_last_line_that_a_crash_cut_short_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    log = logger(tmp_path, resumed_from=2)
    log.log(3, {})
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


def test_a_file_that_is_not_ours_is_refused_by_line_and_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nhello\n')
    with pytest.raises(UserError, match=rf"{path}:2: not a metrics record"):
        logger(tmp_path, resumed_from=5)
    assert path.read_text() == '{"step": 1}\nhello\n'


def test_a_disabled_logger_leaves_no_trace(tmp_path):
    log = MetricsLogger(tmp_path / "run", enabled=False, total_steps=1)
    log.log(1, {"x": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stopwatch_adds_up_blocks_of_one_name_and_starts_over_when_taken():
    clock = Clock()
    stopwatch = Stopwatch(clock)
    for seconds in (2, 3):
        with stopwatch("rollout"):
            clock.now += seconds
    with stopwatch("step"), stopwatch("update"):
        clock.now += 1
    expected = {"timing_s/rollout": 5.0, "timing_s/step": 1.0, "timing_s/update": 1.0}
    assert stopwatch.take() == expected
    assert stopwatch.take() == {}
    assert stopwatch.spans == [
        ("rollout", 100.0, 102.0),
        ("rollout", 102.0, 105.0),
        ("update", 105.0, 106.0),
        ("step", 105.0, 106.0),
    ]
