"""What a person sees of a training run: one line a step, and one that stays for each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

MAX_COLUMNS = 100
SECONDS_BETWEEN_LINES = 5.0
"""Where the console is no terminal: a log of thousands of lines is read by nobody."""

_ALWAYS = (
    ("sft/nll", "loss", ".4f"),
    ("actor/grad_norm", "grad", ".2g"),
    ("reward/mean", "reward", ".3f"),
    ("zv/frac_flat", "flat", ".2f"),
    ("response_length/mean", "length", ".0f"),
    ("response_length/truncated_frac", "cut", ".2f"),
    ("mismatch/logprob_abs_mean", "gap", ".0e"),
    ("timing_s/step", "s/step", ".1f"),
)
"""Key, label and format of what a step's line shows, where the step logged it."""
_ABOVE_ZERO = (
    ("zv/expand/rollouts", "added", ".0f"),
    ("zv/prefilter/saved", "skipped", ".0f"),
    ("reward/invalid", "invalid", ".1%"),
    ("actor/skipped_frac", "no update", ".0%"),
)
"""What it shows only where there is some."""
_OF_REINFORCEMENT = frozenset({"actor/grad_norm"})
"""Left out of a line that has a reward: it would be too long."""


class ProgressLine:
    """A terminal gets one line that changes, anything else a line every few seconds.

    Args:
        last_step: the step that the run goes on from; 0 for a fresh one.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console, total_steps: int, last_step: int, clock: Callable[[], float]
    ) -> None:
        self._console = console
        self._total_steps = total_steps
        self._first_step = self._last_step = last_step
        self._clock = clock
        self._started = clock()
        self._printed: float | None = None
        self._held: str | None = None
        """The last line, where it has not been printed."""
        self._live = Live(console=console, auto_refresh=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a step, and keep what an evaluation came to."""
        self._last_step = max(step, self._last_step)
        for evaluation in evaluation_lines(step, metrics):
            self._print(evaluation)
        if step > 0:
            self._show(self._line(step, metrics))

    def close(self) -> None:
        """Show the last step, and leave the console as it was."""
        if self._held is not None:
            self._print(self._held)
        self._live.stop()

    def _show(self, line: str) -> None:
        if self._console.is_terminal:
            self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif self._is_due():
            self._print(line)
            self._printed = self._clock()
            self._held = None
        else:
            self._held = line

    def _is_due(self) -> bool:
        """The first step, one every few seconds, and the last."""
        if self._printed is None or self._last_step >= self._total_steps:
            return True
        return self._clock() - self._printed >= SECONDS_BETWEEN_LINES

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        left_out = _OF_REINFORCEMENT if "reward/mean" in metrics else frozenset()
        shown = [f"step {step}/{self._total_steps}"]
        shown += [
            f"{label} {metrics[key]:{spec}}"
            for key, label, spec in _ALWAYS
            if key in metrics and key not in left_out
        ]
        remaining = self._eta()
        shown += [] if remaining is None else [f"ETA {remaining}"]
        shown += [
            f"{label} {metrics[key]:{spec}}"
            for key, label, spec in _ABOVE_ZERO
            if metrics.get(key, 0.0) > 0
        ]
        while len(line := "  ".join(shown)) > MAX_COLUMNS:
            shown.pop()
        return line

    def _eta(self) -> str | None:
        steps_done = self._last_step - self._first_step
        if not steps_done:
            return None
        seconds_per_step = (self._clock() - self._started) / steps_done
        return _duration(seconds_per_step * (self._total_steps - self._last_step))


def evaluation_lines(step: int, metrics: Mapping[str, float]) -> list[str]:
    """What each evaluation after a step came to, with its interval of 95 %."""
    lines = []
    if "eval/loss" in metrics:
        lines.append(f"evaluation after step {step}: loss {metrics['eval/loss']:.4f}")
    for key in metrics:
        area, _, rest = key.partition("/")
        name, _, last = rest.rpartition("/")
        if area == "eval" and name and last == "accuracy":
            lines.append(_accuracy_line(step, name, metrics))
    return lines


def _accuracy_line(step: int, name: str, metrics: Mapping[str, float]) -> str:
    of_set = f"eval/{name}"
    accuracy, low, high = (metrics[f"{of_set}/accuracy{end}"] for end in ("", "/low", "/high"))
    shown = [
        f"{name} after step {step}: accuracy {accuracy:.3f} [{low:.3f}, {high:.3f}]",
        f"{metrics[f'{of_set}/num_prompts']:.0f} prompts",
        f"length {metrics[f'{of_set}/mean_tokens']:.0f}",
    ]
    if metrics[f"{of_set}/invalid_frac"] > 0:
        shown.append(f"invalid {metrics[f'{of_set}/invalid_frac']:.1%}")
    return "  ".join(shown)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
