"""tools/bench.py, run as a command: its figures, and how it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/bench.py"), *words], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def figures() -> dict:
    done = bench("zve", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def of_first_mixture(figures: dict) -> dict[str, dict]:
    """By strategy; the first mixture's results come first."""
    results = figures["results"]
    return {r["strategy"]: r for r in results if r["mixture"] == results[0]["mixture"]}


def test_gated_staging_meets_its_targets(figures: dict) -> None:
    assert figures["ratio"] >= figures["limit"] == 2.3
    assert figures["flat_reduction"] >= figures["flat_limit"] == 0.17
    assert 0 < figures["residual_share"] < 0.15
    assert figures["versions"]["python"] == sys.version.split()[0]
    results = of_first_mixture(figures)
    plain, staged = results["plain N=8"], results["all stages gated"]
    per_useful = "rollouts_per_useful_group"
    assert figures["ratio"] == pytest.approx(plain[per_useful] / staged[per_useful])


def test_plain_groups_and_the_ladder_match_arithmetic(figures: dict) -> None:
    """Of a uniform pass rate, N rollouts are flat with probability 2 / (N + 1)."""
    results = of_first_mixture(figures)

    def flat(size: int) -> float:
        return 0.6 + 0.4 * 2 / (size + 1)

    for size in (8, 16, 32):
        plain = results[f"plain N={size}"]
        assert plain["flat_share"] == pytest.approx(flat(size), rel=0.02)
        assert plain["rollouts_per_useful_group"] == pytest.approx(
            size / (1 - flat(size)), rel=0.03
        )
    ladder = (8 + 8 * flat(8) + 16 * flat(16)) / (1 - flat(32))
    got = results["ungated ladder 8-16-32"]["rollouts_per_useful_group"]
    assert got == pytest.approx(ladder, rel=0.03)


def test_the_same_seed_gives_the_same_figures_and_another_does_not() -> None:
    spec = importlib.util.spec_from_file_location("benches.zve", ROOT / "tools/benches/zve.py")
    assert spec is not None
    assert spec.loader is not None
    zve = importlib.util.module_from_spec(spec)
    sys.modules["benches.zve"] = zve  # where dataclasses look their module up
    spec.loader.exec_module(zve)
    mixture, strategy = zve.MIXTURES[0], zve.STRATEGIES[-1]
    first, again, other = (
        zve.simulate(mixture, strategy, zve.Config(num_steps=40, seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nothing"], "no benchmark 'nothing'"),
        (["zve", "--num-prompts", "5"], "num_prompts=5"),
    ],
)
def test_mistakes_are_exit_code_2_in_one_line(words: list[str], named: str) -> None:
    done = bench(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
