"""The prior over prompts, against numerical integration and a known population."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass.rl.zero_variance.population import EPSILON, Population, all_alike

COUNTS = st.integers(0, 20)
SHARES = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1))


def population_of(weights: tuple[float, float, float]) -> Population:
    total = sum(weights)
    return Population(impossible=weights[0] / total, trivial=weights[1] / total)


@given(COUNTS, COUNTS, COUNTS)
def test_all_alike_is_a_ratio_of_beta_functions(passes, failures, k):
    def beta(a: int, b: int) -> Fraction:
        return Fraction(math.factorial(a - 1) * math.factorial(b - 1), math.factorial(a + b - 1))

    a, b = 1 + passes, 1 + failures
    assert all_alike(a, b, k) == pytest.approx(float(beta(a + k, b) / beta(a, b)), rel=1e-12)


def expectation_over_pass_rates(population, passes, failures, value):
    """Bayes' rule on a list of pass rates: the two extremes, and a fine grid for the rest."""
    num = 4000
    rest = 1 - population.impossible - population.trivial
    rates = [(EPSILON, population.impossible), (1 - EPSILON, population.trivial)]
    rates += [((i + 0.5) / num, rest / num) for i in range(num)]
    weights = [w * p**passes * (1 - p) ** failures for p, w in rates]
    values = [value(p) for p, _ in rates]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


@given(SHARES, COUNTS, COUNTS, st.integers(1, 16), st.booleans())
def test_the_chance_of_breaking_a_tie_is_bayes_rule(weights, passes, failures, k, right):
    population = population_of(weights)
    survives = (lambda p: p**k) if right else (lambda p: (1 - p) ** k)
    expected = 1 - expectation_over_pass_rates(population, passes, failures, survives)
    got = population.break_probability((passes, failures), right=right, num_rollouts=k)
    assert got == pytest.approx(expected, abs=1e-4)


@given(SHARES, st.floats(0, 1e5), st.floats(0, 1e5))
def test_kinds_are_probabilities_however_long_the_history(weights, passes, failures):
    kinds = population_of(weights).kinds((passes, failures))
    assert math.fsum(kinds) == pytest.approx(1)
    assert min(kinds) >= 0


@given(SHARES, st.floats(0, 30), st.floats(0, 30), st.integers(1, 16))
def test_right_and_wrong_are_mirror_images(weights, passes, failures, k):
    population = population_of(weights)
    mirrored = Population(impossible=population.trivial, trivial=population.impossible)
    assert population.break_probability(
        (passes, failures), right=True, num_rollouts=k
    ) == pytest.approx(
        mirrored.break_probability((failures, passes), right=False, num_rollouts=k), abs=1e-9
    )


def test_repeated_fitting_finds_the_shares_of_a_known_population():
    draw = random.Random(0)
    rates = [0.0] * 350 + [1.0] * 250 + [(i + 0.5) / 400 for i in range(400)]
    evidence = []
    for rate in rates:
        passes = sum(draw.random() < rate for _ in range(32))
        evidence.append((float(passes), float(32 - passes)))
    population = Population()
    for _ in range(100):
        kinds = [population.kinds(e) for e in evidence]
        population = Population.fitted(
            impossible=sum(k[0] for k in kinds),
            trivial=sum(k[1] for k in kinds),
            num_prompts=len(kinds),
        )
    assert population.impossible == pytest.approx(0.35, abs=0.02)
    assert population.trivial == pytest.approx(0.25, abs=0.02)


def test_a_population_nobody_has_met_is_one_of_thirds():
    assert Population.fitted(impossible=0, trivial=0, num_prompts=0) == Population()
    assert Population().kinds((0, 0)) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
