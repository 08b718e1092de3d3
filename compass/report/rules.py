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
    first, last = _ends(run, key)
    if first and last is not None and last < COLLAPSED_ENTROPY * first and not _has_risen(run):
        text = f"Entropy fell from {first:.2g} to {last:.2g} nats while verdicts did not rise."
        yield Finding(rule="entropy collapse", text=text, metric=key)


def length_collapse(run: RunData) -> Iterator[Finding]:
    """Completions became short, and no better."""
    key = "response_length/mean"
    first, last = _ends(run, key)
    if first and last is not None and last < COLLAPSED_LENGTH * first and not _has_risen(run):
        text = f"Completions shrank from {first:.0f} to {last:.0f} tokens; verdicts did not rise."
        yield Finding(rule="length collapse", text=text, metric=key)


def truncation(run: RunData) -> Iterator[Finding]:
    """Completions end at the limit."""
    key = "response_length/truncated_frac"
    if (last := run.last_tenth(key)) is not None and last > TRUNCATED:
        text = f"{last:.0%} of completions are cut off at max_completion_tokens."
        yield Finding(rule="truncation", text=text, metric=key)


def invalid_verdicts(run: RunData) -> Iterator[Finding]:
    """Verifiers break."""
    key = "reward/invalid"
    if (last := run.last_tenth(key)) is not None and last > INVALID:
        text = f"{last:.1%} of verdicts are invalid; the rollouts give the reasons."
        yield Finding(rule="invalid verdicts", text=text, metric=key)


def gap(run: RunData) -> Iterator[Finding]:
    """Generator and trainer disagree."""
    key = "mismatch/k3_kl"
    if (last := run.last_tenth(key)) is not None and last > GAP_K3:
        text = f"Generator and trainer differ by a k3 KL of {last:.1e}, above {GAP_K3:.0e}."
        yield Finding(rule="gap", text=text, metric=key)
    key = "mismatch/extreme_frac"
    if (last := run.last_tenth(key)) is not None and last > EXTREME:
        text = f"{last:.1%} of tokens are twice as likely, or half, to the trainer."
        yield Finding(rule="gap", text=text, metric=key)


def flat_groups(run: RunData) -> Iterator[Finding]:
    """Prompts are too easy or too hard."""
    key = "zv/frac_flat"
    if (last := run.last_tenth(key)) is not None and last > FLAT:
        right = run.last_tenth("zv/all_right_frac") or 0.0
        text = (
            f"{last:.0%} of groups are flat ({right:.0%} all right): most rollouts compare nothing."
        )
        yield Finding(rule="flat groups", text=text, metric=key)


def cut_gradients(run: RunData) -> Iterator[Finding]:
    """Clipping takes most of the gradient."""
    key = "actor/cut_grad_frac"
    if (last := run.last_tenth(key)) is not None and last > CUT_GRADIENT:
        text = f"Clipping cuts off {last:.0%} of the gradient: smaller steps, or a wider clip."
        yield Finding(rule="cut gradients", text=text, metric=key)


def skipped_updates(run: RunData) -> Iterator[Finding]:
    """Gradients that were not finite."""
    key = "actor/skipped_frac"
    if (skipped := run.total(key)) > 0:
        text = f"Gradients were not finite; {skipped:.1f} steps' worth of updates was left out."
        yield Finding(rule="skipped updates", text=text, metric=key)


def flips(run: RunData) -> Iterator[Finding]:
    """The live router disagrees with the record."""
    key = "router/flip_rate"
    if (last := run.last_tenth(key)) is not None and last > FLIPPED:
        text = f"The router would now choose other experts for {last:.1%} of choices."
        yield Finding(rule="router flips", text=text, metric=key)


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
    truncation,
    invalid_verdicts,
    gap,
    flat_groups,
    cut_gradients,
    skipped_updates,
    flips,
    dear_expansion,
)


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
