"""Each rule finds a run made to be wrong in its way, and nothing in one that learns; what is left
of a damaged run is read, and what is missing is named."""

from __future__ import annotations

import json

import pytest

from compass.errors import UserError
from compass.report.rules import RULES, findings
from compass.report.run import named_apart, read_run
from tests.report.damaged_runs import write_metrics

STEPS = 20


def ramp(first: float, last: float) -> list[float]:
    return [first + (last - first) * i / (STEPS - 1) for i in range(STEPS)]


LEARNS = {
    # Like the demo: entropy and flat groups go where answers become right.
    "reward/verdict": ramp(0.3, 0.9),
    "actor/entropy": ramp(0.2, 0.001),
    "response_length/mean": ramp(12, 39),
    "response_length/truncated_frac": ramp(0.0, 0.01),
    "reward/invalid": ramp(0.0, 0.0),
    "mismatch/k3_kl": ramp(1e-14, 1e-14),
    "mismatch/extreme_frac": ramp(0.0, 0.0),
    "zv/frac_flat": ramp(0.1, 0.8),
    "actor/cut_grad_frac": ramp(0.0, 0.3),
    "actor/skipped_frac": ramp(0.0, 0.0),
    "router/flip_rate": ramp(0.001, 0.001),
    "zv/base/tokens": ramp(8000, 8000),
    "zv/base/saved": ramp(13, 13),
    "zv/expand/tokens": ramp(146, 146),
    "zv/expand/saved": ramp(0.1, 0.1),
}
STUCK = {"reward/verdict": ramp(0.3, 0.3)}
WRONG = {
    "entropy collapse": STUCK | {"actor/entropy": ramp(0.2, 0.0)},
    "length collapse": STUCK | {"response_length/mean": ramp(400, 20), "actor/entropy": ramp(1, 1)},
    "truncation": {"response_length/truncated_frac": ramp(0.0, 0.4)},
    "invalid verdicts": {"reward/invalid": ramp(0.0, 0.05)},
    "gap": {"mismatch/k3_kl": ramp(1e-5, 1e-2)},
    "flat groups": {"zv/frac_flat": ramp(0.5, 1.0)},
    "cut gradients": {"actor/cut_grad_frac": ramp(0.1, 0.9)},
    "skipped updates": {"actor/skipped_frac": [0.0] * (STEPS - 1) + [1.0]},
    "router flips": {"router/flip_rate": ramp(0.01, 0.2)},
    "dear expansion": {"zv/expand/tokens": ramp(4000, 4000)},
}


def found(tmp_path, curves) -> list[str]:
    return [f.rule for f in findings(read_run(write_metrics(tmp_path / "run", curves)))]


@pytest.mark.parametrize("rule", WRONG)
def test_each_rule_finds_what_it_is_for_and_nothing_else(rule, tmp_path):
    assert found(tmp_path, LEARNS | WRONG[rule]) == [rule]


def test_a_run_that_learns_has_nothing_wrong(tmp_path):
    assert len(WRONG) == len(RULES)
    assert found(tmp_path, LEARNS) == []


def test_a_run_of_one_step_has_no_trend(tmp_path):
    assert found(tmp_path, {key: values[:1] for key, values in LEARNS.items()}) == []


def test_what_is_left_of_a_damaged_run_is_read_and_the_rest_is_named(tmp_path):
    run_dir = write_metrics(tmp_path / "run", {"reward/mean": [0.1, 0.2]})
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 3, "reward/mean": NaN, "x": "text"}\n{"step": 4, "rew')
    (run_dir / "config.toml").write_text("num_steps = = 3")
    run = read_run(run_dir)
    assert run.steps == [1, 2, 3]
    assert run.metrics == {"reward/mean": [0.1, 0.2, None]}
    text = "\n".join(run.missing)
    assert "2 of 5 lines are no records" in text
    assert "config.toml is damaged" in text
    assert "no rollouts" in text
    assert "step 3 is the last one logged" in text


def test_a_run_that_has_only_begun_is_no_error_and_another_folder_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "has no step yet" in "\n".join(read_run(tmp_path).missing)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="neither metrics"):
        read_run(tmp_path / "other")
    with pytest.raises(UserError, match="is no folder"):
        read_run(tmp_path / "absent")


def test_runs_that_differ_in_their_seed_are_one_family(tmp_path):
    runs = []
    for name, text in {"a": "seed = 0\nlr = 1", "b": "seed = 1\nlr = 1", "c": "lr = 2"}.items():
        folder = write_metrics(tmp_path / name / "rl", {"x": [1.0]})
        (folder / "config.toml").write_text(text + f"\nrun_dir = {json.dumps(name)}")
        runs.append(read_run(folder))
    assert runs[0].family == runs[1].family != runs[2].family
    paths = [tmp_path / name / "rl" for name in "abc"]
    assert named_apart(paths) == ["a/rl", "b/rl", "c/rl"]
