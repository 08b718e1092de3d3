"""What is wrong with a run, in words. Every rule and its threshold is in docs/report.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compass.report.run import RunData

COLLAPSED_ENTROPY = 0.1
COLLAPSED_LENGTH = 0.5
RISEN = 0.02
"""Less than this is no gain of the mean verdict."""
TRUNCATED = 0.2
INVALID = 0.01
GAP_K3 = 1e-3
EXTREME = 0.01
FLAT = 0.9
CUT_GRADIENT = 0.5
FLIPPED = 0.05
DEAR_EXPANSION = 4.0
EXPANSION_SHARE = 0.01
FEWEST_STEPS = 6
"""Before this many steps a first and a last tenth are the same."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong. Built by the rules."""

    rule: str
    text: str
    metric: str
    """The key whose curve shows it."""


def findings(run: RunData) -> list[Finding]:
    """What the rules find, in their order."""
    return [finding for rule in RULES for finding in rule(run)]


def entropy_collapse(run: RunData) -> Iterator[Finding]:
    """Entropy is gone, and nothing was bought with it: where answers become right, it falls too."""
    key = "actor/entropy"
    for first, last in _collapsed(run, key, COLLAPSED_ENTROPY):
        text = f"Entropy fell from {first:.2g} to {last:.2g} nats while verdicts did not rise."
        yield Finding(rule="entropy collapse", text=text, metric=key)


def length_collapse(run: RunData) -> Iterator[Finding]:
    """Completions became short, and no better."""
    key = "response_length/mean"
    for first, last in _collapsed(run, key, COLLAPSED_LENGTH):
        text = f"Completions shrank from {first:.0f} to {last:.0f} tokens; verdicts did not rise."
        yield Finding(rule="length collapse", text=text, metric=key)


@dataclass(frozen=True, kw_only=True)
class Above:
    """A rule: the mean of a metric's last tenth is above a threshold."""

    rule: str
    metric: str
    threshold: float
    say: Callable[[float, RunData], str]

    def __call__(self, run: RunData) -> Iterator[Finding]:
        """The finding, if there is one."""
        last = run.last_tenth(self.metric)
        if last is not None and last > self.threshold:
            yield Finding(rule=self.rule, text=self.say(last, run), metric=self.metric)


GAPS = (
    Above(
        rule="gap",
        metric="mismatch/k3_kl",
        threshold=GAP_K3,
        say=lambda last, _: (
            f"Generator and trainer differ by a k3 KL of {last:.1e}, above {GAP_K3:.0e}."
        ),
    ),
    Above(
        rule="gap",
        metric="mismatch/extreme_frac",
        threshold=EXTREME,
        say=lambda last, _: f"{last:.1%} of tokens are twice as likely, or half, to the trainer.",
    ),
)


def gap(run: RunData) -> Iterator[Finding]:
    """Generator and trainer disagree, on the whole or at single tokens."""
    for rule in GAPS:
        yield from rule(run)


def _flat_groups(last: float, run: RunData) -> str:
    """Prompts are too easy or too hard."""
    right = run.last_tenth("zv/all_right_frac") or 0.0
    return f"{last:.0%} of groups are flat ({right:.0%} all right): most rollouts compare nothing."


def skipped_updates(run: RunData) -> Iterator[Finding]:
    """Gradients that were not finite."""
    key = "actor/skipped_frac"
    if (skipped := run.total(key)) > 0:
        text = f"Gradients were not finite; {skipped:.1f} steps' worth of updates was left out."
        yield Finding(rule="skipped updates", text=text, metric=key)


def dear_expansion(run: RunData) -> Iterator[Finding]:
    """Stage 2 costs more than it brings."""
    spent, saved = run.total("zv/expand/tokens"), run.total("zv/expand/saved")
    base_spent, base_saved = run.total("zv/base/tokens"), run.total("zv/base/saved")
    if not base_saved or spent < EXPANSION_SHARE * base_spent:
        return
    times = spent / max(saved, 1.0) / (base_spent / base_saved)
    if times > DEAR_EXPANSION:
        text = (
            f"Expansion wrote {spent:,.0f} tokens and saved {saved:.0f} groups: {times:.1f} times "
            "what a useful group costs without it."
        )
        yield Finding(rule="dear expansion", text=text, metric="zv/expand/saved")


RULES: tuple[Callable[[RunData], Iterator[Finding]], ...] = (
    entropy_collapse,
    length_collapse,
    Above(
        rule="truncation",
        metric="response_length/truncated_frac",
        threshold=TRUNCATED,
        say=lambda last, _: f"{last:.0%} of completions are cut off at max_completion_tokens.",
    ),
    Above(
        rule="invalid verdicts",
        metric="reward/invalid",
        threshold=INVALID,
        say=lambda last, _: f"{last:.1%} of verdicts are invalid; the rollouts give the reasons.",
    ),
    gap,
    Above(rule="flat groups", metric="zv/frac_flat", threshold=FLAT, say=_flat_groups),
    Above(
        rule="cut gradients",
        metric="actor/cut_grad_frac",
        threshold=CUT_GRADIENT,
        say=lambda last, _: (
            f"Clipping cuts off {last:.0%} of the gradient: smaller steps, or a wider clip."
        ),
    ),
    skipped_updates,
    Above(
        rule="router flips",
        metric="router/flip_rate",
        threshold=FLIPPED,
        say=lambda last, _: f"The router would now choose other experts for {last:.1%} of choices.",
    ),
    dear_expansion,
)


def _collapsed(run: RunData, key: str, share: float) -> Iterator[tuple[float, float]]:
    """The first and the last tenth, where the last is below a share of the first and verdicts did
    not rise."""
    first, last = _ends(run, key)
    if first and last is not None and last < share * first and not _has_risen(run):
        yield first, last


def _ends(run: RunData, key: str) -> tuple[float | None, float | None]:
    """Means of the first and the last tenth; None where the run is too short for both."""
    if sum(value is not None for value in run.metrics.get(key, ())) < FEWEST_STEPS:
        return None, None
    return run.first_tenth(key), run.last_tenth(key)


def _has_risen(run: RunData) -> bool:
    """Whether answers became better."""
    key = "reward/verdict" if "reward/verdict" in run.metrics else "reward/mean"
    first, last = _ends(run, key)
    return first is not None and last is not None and last > first + RISEN
