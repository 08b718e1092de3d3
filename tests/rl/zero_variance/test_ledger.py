"""The ledger balances whatever happens, and nothing generated is outside it."""

import io
import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from compass.rl.zero_variance.ledger import STAGES, Ledger
from tests.rl.zero_variance.groups import MIXED, RIGHT, WRONG, outcomes, visit

GROUP = outcomes(st.sampled_from(["p", "q"]))
OPERATIONS = st.lists(
    st.tuples(st.just("skip"), st.integers(0, 50))
    | st.tuples(st.just("record"), GROUP)
    | st.tuples(st.just("spend"), st.sampled_from(STAGES))
    | st.tuples(st.just("resume"), st.none())
    | st.tuples(st.just("reduce"), st.none())
    | st.tuples(st.just("add"), st.lists(GROUP, max_size=3)),
    max_size=30,
)


def ledger_of(groups) -> Ledger:
    ledger = Ledger()
    for group in groups:
        ledger.record(group)
    return ledger


def after(ledger: Ledger, operation: str, argument) -> Ledger:
    """The ledger once something has happened to it."""
    if operation == "skip":
        ledger.skip(argument)
    elif operation == "record":
        ledger.record(argument)
    elif operation == "spend":
        ledger.spend(argument, 0.5)
    elif operation == "add":
        ledger.add(ledger_of(argument))
    elif operation == "resume":
        resumed = Ledger()
        resumed.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
        return resumed
    else:
        return Ledger.from_list(ledger.to_list())
    return ledger


@given(OPERATIONS)
def test_the_books_balance_and_hold_everything_that_was_generated(operations):
    ledger, groups = Ledger(), []
    skipped, spent = 0, 0.0
    for operation, argument in operations:
        ledger = after(ledger, operation, argument)
        skipped += argument if operation == "skip" else 0
        spent += 0.5 if operation == "spend" else 0
        groups += argument if operation == "add" else [argument] if operation == "record" else []
        for stage in STAGES:
            assert ledger[stage, "in"] == ledger[stage, "saved"] + ledger[stage, "out"]
        for stage, following in pairwise(STAGES):
            assert ledger[stage, "out"] == ledger[following, "in"]

    def total(name: str) -> float:
        return sum(ledger[stage, name] for stage in STAGES)

    assert ledger["prefilter", "in"] == skipped + len(groups)
    assert total("rollouts") == sum(g.base_rollouts + g.expand_rollouts for g in groups)
    assert total("tokens") == sum(g.base_tokens + g.expand_tokens for g in groups)
    assert total("seconds") == spent
    for stage in STAGES[1:]:
        assert ledger[stage, "saved"] == sum(g.saved_by == stage for g in groups)
    assert ledger["residual", "out"] == sum(g.saved_by == "none" for g in groups)


def small_run() -> Ledger:
    """Two skipped; one group of each fate."""
    ledger = ledger_of(
        [
            visit("a", MIXED),
            visit("b", (*WRONG, *MIXED), added=8, saved_by="expand"),
            visit("c", RIGHT, saved_by="reshape"),
            visit("d", WRONG, saved_by="residual"),
            visit("e", WRONG * 2, added=8),
        ]
    )
    ledger.skip(2)
    return ledger


def test_each_stage_counts_what_reaches_it():
    ledger = small_run()
    assert [ledger[stage, "in"] for stage in STAGES] == [7, 5, 4, 3, 2]
    assert [ledger[stage, "saved"] for stage in STAGES] == [2, 1, 1, 1, 1]
    assert [ledger[stage, "rollouts"] for stage in STAGES] == [0, 40, 16, 0, 0]
    assert (ledger.flat_share, ledger.residual_share) == (3 / 5, 2 / 5)
    assert ledger.rollouts_per_useful_group == 56 / 2
    assert Ledger().rollouts_per_useful_group is None


def test_metrics_have_the_names_of_the_method():
    metrics = small_run().metrics()
    assert metrics["zv/prefilter/saved"] == 2
    assert metrics["zv/expand/tokens"] == 160
    for stage in ("prefilter", "expand", "reshape", "residual"):
        for name in ("in", "saved", "out", "rollouts", "tokens", "seconds"):
            assert f"zv/{stage}/{name}" in metrics


def test_the_table_shows_every_stages_counts():
    console = Console(width=100, file=io.StringIO())
    console.print(small_run().table())
    lines = console.file.getvalue().splitlines()
    for stage, counts in zip(STAGES, (["7", "2", "5"], ["5", "1", "4"]), strict=False):
        (row,) = [line.replace("│", " ").split() for line in lines if stage in line]
        assert row[:4] == [stage, *counts]
    assert all(any(stage in line for line in lines) for stage in STAGES)
