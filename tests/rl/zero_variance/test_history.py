"""The history skips what was flat, alike on every rank and after a resume."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from compass.errors import UserError
from compass.rl.zero_variance.history import PrefilterConfig, PromptHistory, evaluation_outcomes
from compass.rl.zero_variance.population import Population
from tests.rl.zero_variance.groups import MIXED, RIGHT, WRONG, outcomes, visit

PROMPT_IDS = st.sampled_from(["a", "b", "c", "d"])


def history_of(*groups, **thresholds) -> PromptHistory:
    history = PromptHistory(PrefilterConfig(**thresholds), seed=0)
    for verdicts in groups:
        history.record(visit("p", verdicts))
    return history


def through_json(history: PromptHistory) -> PromptHistory:
    resumed = PromptHistory(PrefilterConfig(), seed=0)
    resumed.load_state_dict(json.loads(json.dumps(history.state_dict())))
    return resumed


@pytest.mark.parametrize(
    ("groups", "keep"),
    [
        ([], 1),
        ([WRONG], 1),
        ([WRONG] * 2, 0.25),
        ([WRONG] * 3, 0.0625),
        ([WRONG] * 4, 0.05),
        ([WRONG] * 9, 0.05),
        ([RIGHT] * 2, 0.25),
        ([RIGHT, WRONG], 1),
        ([RIGHT, WRONG, WRONG], 0.25),
        ([WRONG, WRONG, MIXED], 1),
        ([WRONG, WRONG, MIXED, WRONG], 1),
        ([WRONG, (), WRONG], 0.25),
        ([WRONG, (0.0,)], 1),
        ([RIGHT, (0.5, 0.5)], 0.25),
    ],
)
def test_keep_probability_falls_with_flat_visits_of_one_sign(groups, keep):
    assert history_of(*groups).keep_probability("p") == keep
    assert history_of(*groups).keep_probability("another") == 1
    assert history_of(*groups, enabled=False).keep_probability("p") == 1


def test_prompts_are_kept_as_often_as_their_probability_says():
    history = history_of(*[WRONG] * 9)
    kept = sum(history.admit("p") for _ in range(20_000))
    assert kept / 20_000 == pytest.approx(0.05, abs=0.005)
    assert (history["p"].draws, history["p"].skips) == (20_000, 20_000 - kept)
    assert all(history.admit(f"new {i}") for i in range(100))


def test_decisions_depend_on_seed_prompt_and_draw_alone():
    """Pinned: a resumed run on another machine must decide the same."""
    history = history_of(*[WRONG] * 2)
    history.record(visit("q", MIXED))
    decisions = [history.admit("p") for _ in range(24)]
    assert [i for i, admitted in enumerate(decisions) if admitted] == [0, 3, 5, 6, 12, 19, 23]
    other = PromptHistory(PrefilterConfig(), seed=1)
    for _ in range(2):
        other.record(visit("p", WRONG))
    assert [other.admit("p") for _ in range(24)] != decisions


@given(st.lists(outcomes(PROMPT_IDS), unique_by=lambda o: o.prompt_id), st.randoms())
def test_a_step_is_the_same_whatever_rank_had_which_group(groups, shuffler: random.Random):
    alone, spread = (
        PromptHistory(PrefilterConfig(), seed=0),
        PromptHistory(PrefilterConfig(), seed=0),
    )
    by_rank = [[], [], []]
    for group in shuffler.sample(groups, len(groups)):
        shuffler.choice(by_rank).append(group)
    for _ in range(2):
        alone.merge([groups])
        spread.merge(by_rank)
    assert alone.state_dict() == spread.state_dict()


class ResumedHistory(RuleBasedStateMachine):
    """One history lives on, another goes through a checkpoint every time anything happens."""

    @initialize()
    def start(self) -> None:
        self.whole = PromptHistory(PrefilterConfig(), seed=0)
        self.resumed = PromptHistory(PrefilterConfig(), seed=0)
        self.visits = 0

    @rule(prompt_id=PROMPT_IDS)
    def draw(self, prompt_id: str) -> None:
        self.resumed = through_json(self.resumed)
        assert self.whole.admit(prompt_id) == self.resumed.admit(prompt_id)

    @rule(groups=st.lists(outcomes(PROMPT_IDS), max_size=4))
    def step(self, groups) -> None:
        self.resumed = through_json(self.resumed)
        self.whole.merge([groups])
        self.resumed.merge([groups])
        self.visits += len(groups)

    @invariant()
    def agree(self) -> None:
        assert self.whole.state_dict() == self.resumed.state_dict()
        assert self.whole.prospects() == self.resumed.prospects()
        rows = list(self.resumed.rows())
        assert sum(sum(row["saved_by"].values()) for row in rows) == self.visits
        population = self.resumed.population
        assert min(population.impossible, population.trivial) > 0
        assert population.impossible + population.trivial < 1


TestResumedHistory = ResumedHistory.TestCase
TestResumedHistory.settings = settings(max_examples=30, stateful_step_count=20)


def test_the_posterior_counts_passes_and_lets_old_visits_fade():
    assert history_of().posterior("p") == (1, 1)
    assert history_of((1.0, 0.0, 0.0)).posterior("p") == (2, 3)
    assert history_of((1.0, 0.0, 0.0), (1.0, 1.0)).posterior("p") == (1 + 0.5 + 2, 1 + 1)
    assert history_of((1.0, 0.0), ()).posterior("p") == (2, 2)
    assert history_of((0.5, 0.0)).posterior("p") == (1.5, 2.5)
    assert history_of((1.0, 0.0), (1.0, 1.0), memory=1.0).posterior("p") == (4, 2)


def test_all_earlier_visits_weigh_half_of_the_one_that_comes():
    """The last one too: it is an earlier visit by then."""
    assert history_of().evidence("p") == (0, 0)
    assert history_of((1.0, 0.0, 0.0)).evidence("p") == (0.5, 1)
    assert history_of((1.0, 0.0, 0.0), (1.0, 1.0)).evidence("p") == (0.25 + 1, 0.5)
    assert history_of((1.0, 0.0), ()).evidence("p") == (0.5, 0.5)
    assert history_of((1.0, 0.0), (1.0, 1.0), memory=1.0).evidence("p") == (3, 1)


def test_prospects_are_what_base_rollouts_yielded_of_late():
    history = PromptHistory(PrefilterConfig(), seed=0)
    assert history.prospects() is None
    saved_late = visit("c", (*WRONG, *MIXED), added=8, saved_by="expand")
    history.merge([[visit("a", MIXED), visit("b", WRONG)], [saved_late]])
    assert history.prospects().useful_per_token == pytest.approx(1 / 240)
    history.merge([[visit("a", MIXED), visit("b", MIXED)]])
    assert history.prospects().useful_per_token == pytest.approx((0.8 * 1 + 2) / (0.8 * 240 + 160))


def test_growing_never_pays_more_than_base_rollouts_cost_over_the_run():
    """However barren they get."""
    history = PromptHistory(PrefilterConfig(), seed=0)
    history.merge([[visit("a", MIXED), visit("b", MIXED)]])
    for step in range(1, 5):
        history.merge([[visit("a", WRONG), visit("b", WRONG)]])
        over_the_run = 2 / (2 * 80 * (step + 1))
        assert history.prospects().useful_per_token == pytest.approx(over_the_run)


def test_the_gate_learns_from_what_came_of_its_bets():
    """Eight groups grew from a tie of right answers, and two of the ties broke."""
    history = PromptHistory(PrefilterConfig(), seed=0)
    grown = [visit(f"{i}", RIGHT * 2, added=8) for i in range(6)]
    broken = [visit(f"b{i}", RIGHT + MIXED, added=8, saved_by="expand") for i in range(2)]
    expected = Population().break_probability((8, 0), right=True, num_rollouts=8)
    history.merge([grown, broken])
    prospects = history.prospects()
    assert prospects.luck_right == pytest.approx((4 + 2) / (4 + 8 * expected))
    assert prospects.luck_wrong == 1
    tied = (9.0, 1.0)
    assert prospects.break_probability(tied, right=True, num_rollouts=8) == pytest.approx(
        prospects.luck_right
        * history.population.break_probability(tied, right=True, num_rollouts=8)
    )
    assert through_json(history).prospects() == prospects
    for _ in range(300):
        history.merge([[visit("another", MIXED)]])
    assert history.prospects().luck_right == pytest.approx(1), "it tries again some day"


def test_every_rung_of_a_group_that_grew_is_a_bet_of_its_own():
    history = PromptHistory(PrefilterConfig(), seed=0)
    history.record(visit("p", (1.0, 0.0)))
    population, late = history.population, (*WRONG * 2, *WRONG, *MIXED)
    history.merge([[visit("p", late, added=24, saved_by="expand")]])
    first = population.break_probability((0.5, 8.5), right=False, num_rollouts=8)
    second = population.break_probability((0.5, 16.5), right=False, num_rollouts=16)
    assert history.prospects().luck_wrong == pytest.approx((4 + 1) / (4 + first + second))


def test_the_prior_over_prompts_follows_what_was_seen():
    history = PromptHistory(PrefilterConfig(), seed=0)
    assert history.population == Population()
    groups = {"wrong": WRONG, "right": RIGHT, "mixed": MIXED}
    shares = {"wrong": 6, "right": 3, "mixed": 1}
    for _ in range(6):
        history.merge(
            [[visit(f"{k} {i}", groups[k]) for k, n in shares.items() for i in range(10 * n)]]
        )
    assert history.population.impossible == pytest.approx(0.6, abs=0.03)
    assert history.population.trivial == pytest.approx(0.3, abs=0.03)


def test_rows_tell_each_prompts_story():
    history = history_of(WRONG, WRONG, MIXED)
    history.admit("never rolled out")
    met, unmet = sorted(history.rows(), key=lambda row: -row["visits"])
    assert met == {
        "id": "p",
        "visits": 3,
        "skips": 0,
        "rollouts": 24,
        "pass_rate": 4 / 24,
        "recent_pass_rate": 4 / (8 + 4 + 2),
        "streak": 0,
        "keep_probability": 1.0,
        "saved_by": {"none": 2, "base": 1},
    }
    assert (unmet["id"], unmet["pass_rate"]) == ("never rolled out", None)


@pytest.mark.parametrize(
    ("groups", "rate"),
    [
        ([], None),
        ([()], None),
        ([WRONG], 0),
        ([MIXED], 0.5),
        ([WRONG, RIGHT], 8 / 12),
        ([WRONG, RIGHT, ()], 8 / 12),
        ([WRONG, WRONG, WRONG, RIGHT, RIGHT], 12 / 15.5),
        ([RIGHT, (0.25, 0.5)], 4.75 / 6),
    ],
)
def test_the_recent_pass_rate_halves_the_weight_of_every_earlier_visit(groups, rate):
    assert history_of(*groups)["p"].recent_pass_rate == pytest.approx(rate)


def test_an_evaluation_seeds_the_history(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [("p", 1.0), ("q", 0.0), ("p", 0.0), ("q", 0.0), ("q", None)]
    path.write_text(
        "".join(json.dumps({"id": i, "verdict": v, "num_tokens": 7}) + "\n" for i, v in rows)
    )
    found = {outcome.prompt_id: outcome for outcome in evaluation_outcomes(path)}
    assert found["p"].verdicts == (1.0, 0.0)
    assert (found["p"].saved_by, found["q"].saved_by) == ("base", "none")
    assert (found["q"].verdicts, found["q"].base_rollouts) == ((0.0, 0.0), 3)
    assert found["q"].base_tokens == 21
    history = PromptHistory(PrefilterConfig(), seed=0)
    for outcome in found.values():
        history.record(outcome)
    assert (history["p"].streak, history["q"].streak) == (0, -1)
    assert history.prospects() is None


@pytest.mark.parametrize(
    "row", [{"id": "p"}, {"id": 3, "verdict": 1, "num_tokens": 2}, {"id": "p", "verdict": 1.0}]
)
def test_a_line_that_is_no_sample_is_named(tmp_path, row):
    path = tmp_path / "samples.jsonl"
    good = json.dumps({"id": "p", "verdict": 1.0, "num_tokens": 7})
    path.write_text(good + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"samples\.jsonl:2"):
        evaluation_outcomes(path)


@pytest.mark.parametrize(
    "wrong", [{"flat_visits": 0}, {"floor": 0.0}, {"decay": 1.5}, {"memory": -0.1}]
)
def test_thresholds_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        PrefilterConfig(**wrong)
