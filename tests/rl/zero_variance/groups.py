"""Outcomes made by hand, and strategies that draw them."""

from collections.abc import Sequence

from hypothesis import strategies as st

from compass.rl.zero_variance.outcome import GroupOutcome, SavedBy

RIGHT, WRONG, MIXED = (1.0,) * 8, (0.0,) * 8, (0.0, 1.0) * 4


def visit(
    prompt_id: str, verdicts: Sequence[float], *, added: int = 0, saved_by: SavedBy | None = None
) -> GroupOutcome:
    """A group of ten tokens a rollout; flat ones train nothing unless `saved_by` says otherwise."""
    flat = max(verdicts, default=0) == min(verdicts, default=0)
    num_base = len(verdicts) - added
    return GroupOutcome(
        prompt_id=prompt_id,
        verdicts=tuple(verdicts),
        is_flat=flat,
        base_rollouts=num_base,
        base_tokens=10 * num_base,
        expand_rollouts=added,
        expand_tokens=10 * added,
        saved_by=saved_by or ("none" if flat else "base"),
    )


@st.composite
def outcomes(draw: st.DrawFn, prompt_ids: st.SearchStrategy[str]) -> GroupOutcome:
    """Any group a rollout could report: invalid rollouts, expansion, every way of being saved."""
    verdicts = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=6))
    invalid = draw(st.integers(0, 2))
    added = draw(st.integers(0, 16))
    flat = len(set(verdicts)) <= 1
    ways = ["reshape", "residual", "none"] if flat else ["base", "expand"] if added else ["base"]
    return GroupOutcome(
        prompt_id=draw(prompt_ids),
        verdicts=tuple(verdicts),
        is_flat=flat,
        base_rollouts=len(verdicts) + invalid,
        base_tokens=draw(st.integers(0, 500)),
        expand_rollouts=added,
        expand_tokens=draw(st.integers(0, 500)) if added else 0,
        saved_by=draw(st.sampled_from(ways)),
    )
