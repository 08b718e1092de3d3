"""A step's line says what matters, fits a console, and a log holds few of them."""

from __future__ import annotations

import io

from rich.console import Console

from compass.console import MAX_COLUMNS, ProgressLine, evaluation_lines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(
    *, last_step: int = 0, terminal: bool = False
) -> tuple[ProgressLine, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=60, force_terminal=terminal)
    return ProgressLine(console, 10, last_step, clock), out, clock


RL = {
    "actor/grad_norm": 0.3,
    "reward/mean": 0.5,
    "zv/frac_flat": 0.25,
    "response_length/mean": 31.6,
    "response_length/truncated_frac": 0.0,
    "mismatch/logprob_abs_mean": 1.3e-7,
    "timing_s/step": 6.07,
}
TROUBLE = {"zv/expand/rollouts": 8.0, "zv/prefilter/saved": 102.0, "reward/invalid": 0.015}


def test_a_step_of_reinforcement_learning_shows_reward_lengths_gap_and_eta():
    line, out, clock = progress()
    clock.now = 30
    line.log(1, RL | {"zv/expand/rollouts": 0.0, "reward/invalid": 0.0})
    assert out.getvalue() == (
        "step 1/10  reward 0.500  flat 0.25  length 32  cut 0.00  gap 1e-07  s/step 6.1  ETA 4:30\n"
    )


def test_what_was_added_skipped_or_invalid_is_shown_where_there_is_some():
    line, out, clock = progress()
    clock.now = 30
    line.log(1, {"reward/mean": 0.5} | TROUBLE)
    assert out.getvalue() == (
        "step 1/10  reward 0.500  ETA 4:30  added 8  skipped 102  invalid 1.5%\n"
    )


def test_no_line_is_longer_than_a_console():
    line, out, clock = progress()
    clock.now = 360_000
    line.log(1, RL | TROUBLE | {"actor/skipped_frac": 1.0})
    (shown,) = out.getvalue().splitlines()
    assert len(shown) <= MAX_COLUMNS
    assert "ETA" in shown


def test_fine_tuning_shows_loss_and_gradient():
    line, out, clock = progress()
    clock.now = 2
    line.log(1, {"sft/nll": 0.25, "actor/grad_norm": 1.234, "timing_s/step": 2.0})
    assert out.getvalue() == "step 1/10  loss 0.2500  grad 1.2  s/step 2.0  ETA 0:18\n"


def test_a_log_has_a_line_every_few_seconds_and_the_last_step():
    line, out, clock = progress()
    for step in range(1, 10):
        clock.now += 1
        line.log(step, {})
    line.close()
    steps = [text.split()[1] for text in out.getvalue().splitlines()]
    assert steps == ["1/10", "6/10", "9/10"]


def test_the_last_step_is_told_at_once():
    line, out, _ = progress()
    for step in range(1, 11):
        line.log(step, {})
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["1/10", "10/10"]


def test_a_terminal_gets_one_line_that_changes():
    line, out, _ = progress(terminal=True)
    for step in (1, 2, 3):
        line.log(step, {})
    line.close()
    assert "step 3/10" in out.getvalue()
    assert out.getvalue().count("\n") == 1


def test_the_eta_of_a_resumed_run_counts_only_its_own_steps():
    line, out, clock = progress(last_step=7)
    clock.now = 3600
    line.log(8, {})
    assert out.getvalue() == "step 8/10  ETA 2:00:00\n"


def test_every_evaluation_stays_with_its_interval():
    metrics = {
        "eval/hard/accuracy": 0.625,
        "eval/hard/accuracy/low": 0.582,
        "eval/hard/accuracy/high": 0.666,
        "eval/hard/num_prompts": 512.0,
        "eval/hard/mean_tokens": 31.2,
        "eval/hard/invalid_frac": 0.0,
    }
    said = "hard after step 0: accuracy 0.625 [0.582, 0.666]  512 prompts  length 31"
    easy = {key.replace("hard", "easy"): value for key, value in metrics.items()}
    easy["eval/easy/invalid_frac"] = 0.25
    line, out, _ = progress()
    line.log(0, metrics | easy)
    assert out.getvalue() == f"{said}\n{said.replace('hard', 'easy')}  invalid 25.0%\n"
    assert evaluation_lines(3, {"reward/mean": 1.0}) == []
    assert evaluation_lines(3, {"eval/loss": 0.5}) == ["evaluation after step 3: loss 0.5000"]
