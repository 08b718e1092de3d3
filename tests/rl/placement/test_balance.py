"""Every rollout in one microbatch of one rank, caps kept, ranks even, and little moved."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from compass.rl.placement.balance import EVEN, TOLERATED, MicrobatchPlan, plan_microbatches


class Case(NamedTuple):
    sizes: list[int]
    holders: list[int]
    num_ranks: int
    capacity: int

    @property
    def costs(self) -> list[float]:
        return [100.0 * size + size**2 for size in self.sizes]

    def plan(self) -> MicrobatchPlan:
        return plan_microbatches(
            self.sizes, self.costs, self.holders, num_ranks=self.num_ranks, capacity=self.capacity
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_ranks = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 300), max_size=30))
    holders = [draw(st.integers(0, num_ranks - 1)) for _ in sizes]
    return Case(sizes, holders, num_ranks, draw(st.integers(1, 600)))


@given(case=cases())
def test_every_item_is_trained_once_and_caps_are_kept(case: Case):
    plan = case.plan()
    assert sorted(i for rank in plan.by_rank for b in rank for i in b) == list(
        range(len(case.sizes))
    )
    assert len(plan.by_rank) == case.num_ranks
    assert len({len(rank) for rank in plan.by_rank}) == 1, "as many on every rank"
    for rank in plan.by_rank:
        for members in rank:
            assert len(members) <= 1 or sum(case.sizes[i] for i in members) <= case.capacity


@given(case=cases())
def test_the_plan_says_what_it_costs(case: Case):
    plan, costs = case.plan(), case.costs
    num_microbatches = len(plan.by_rank[0])
    slowest = sum(
        max(sum(costs[i] for i in rank[k]) for rank in plan.by_rank)
        for k in range(num_microbatches)
    )
    assert abs(plan.slowest_cost - slowest) <= 1e-9 * slowest
    assert abs(plan.mean_cost * case.num_ranks - sum(costs)) <= 1e-9 * sum(costs)


@given(case=cases())
def test_one_microbatch_is_within_the_bound_of_list_scheduling(case: Case):
    """No item of the dearest rank fits into the gap to the cheapest: else it would have moved
    (Graham's argument)."""
    case = case._replace(capacity=10**6)
    plan, costs = case.plan(), case.costs
    loads = [sum(costs[i] for members in rank for i in members) for rank in plan.by_rank]
    if max(loads, default=0) - min(loads, default=0) <= EVEN * plan.mean_cost:
        return
    (dearest,) = plan.by_rank[loads.index(max(loads))]
    cheapest = min(costs[i] for i in dearest)
    assert max(loads) - min(loads) <= cheapest / (1 - EVEN) * (1 + 1e-9)


@given(case=cases())
def test_a_rank_feeds_a_filler_only_where_it_has_no_item_left(case: Case):
    for rank in case.plan().by_rank:
        num_items = sum(map(len, rank))
        assert sum(not members for members in rank) == max(0, len(rank) - num_items)


def test_what_is_even_already_stays_where_it_is():
    sizes = [10, 20, 30, 10, 20, 30]
    plan = Case(sizes, [0, 0, 0, 1, 1, 1], 2, 1000).plan()
    assert plan.by_rank == (((0, 1, 2),), ((3, 4, 5),))


def test_everything_on_one_rank_is_spread():
    draw = random.Random(1)
    sizes = [draw.randint(20, 400) for _ in range(64)]
    plan = Case(sizes, [0] * 64, 4, 4000).plan()
    assert plan.slowest_cost <= TOLERATED * plan.mean_cost


def test_a_rank_that_holds_the_few_large_ones_is_dealt_anew():
    """Two ranks of equal cost, one with four large items and one with many small: three
    microbatches each, which four indivisible items cannot fill evenly."""
    sizes = [300] * 4 + [20] * 80
    case = Case(sizes, [0] * 4 + [1] * 80, 2, 640)
    plan = case.plan()
    assert plan.slowest_cost <= TOLERATED * plan.mean_cost
    holders_of_large = {plan.ranks[i] for i in range(4)}
    assert holders_of_large == {0, 1}


def test_the_plan_is_the_same_whenever_it_is_made():
    draw = random.Random(2)
    case = Case(
        [draw.randint(1, 300) for _ in range(40)], [draw.randrange(3) for _ in range(40)], 3, 900
    )
    assert case.plan() == case.plan()
