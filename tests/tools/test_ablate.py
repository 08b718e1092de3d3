"""tools/ablate.py: which runs there are, what is reported of them, and that it goes on where it
stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ablations.report import (
    CellResult,
    as_json,
    as_markdown,
    crossing,
    plot_curves,
    run_result,
)

from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.model_directories import write_guessing_model

ROOT = Path(__file__).parents[2]


def ablate(*words: object) -> Any:
    command = [sys.executable, str(ROOT / "tools/ablate.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


# ---- numbers of a run


def row(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, **{key.replace("__", "/"): value for key, value in values.items()}}


EVALUATED = [
    row(0, eval__held_out__accuracy=0.1),
    row(1, perf__tokens_total=100.0, zv__frac_flat=0.5, actor__pg_clipfrac=0.0,
        zv__base__rollouts=8.0, zv__base__saved=1.0, reward__mean=0.9),
    row(2, perf__tokens_total=250.0, zv__frac_flat=0.0, actor__pg_clipfrac=0.2,
        eval__held_out__accuracy=0.6,
        zv__base__rollouts=8.0, zv__base__saved=1.0, zv__expand__rollouts=4.0,
        zv__expand__saved=1.0),
    row(3, perf__tokens_total=300.0, zv__frac_flat=0.1, actor__cut_grad_frac=0.4,
        actor__pg_clipfrac=None, eval__held_out__accuracy=0.5,
        zv__base__rollouts=8.0, zv__base__saved=0.0),
]  # fmt: skip


def test_a_run_is_judged_by_held_out_accuracy_and_charged_for_all_it_spent():
    result = run_result(EVALUATED, seed=3, target=0.55)
    assert result.accuracy == 0.5
    assert result.best_accuracy == 0.6
    # The line from 0.1 before step 1 to 0.6 after step 2 is at 0.55 after nine tenths of the way.
    assert result.steps_to_target == pytest.approx(1.8)
    assert result.rollouts_to_target == pytest.approx(18)
    assert result.tokens_to_target == pytest.approx(225)
    assert result.flat_share == pytest.approx(0.2)
    assert result.clip_fraction == pytest.approx(0.1)
    assert result.cut_gradient == pytest.approx(0.4)
    assert result.rollouts_per_useful_group == pytest.approx(28 / 3)
    assert (result.steps, result.rollouts, result.tokens, result.seed) == (3, 28, 300, 3)


def test_a_target_is_crossed_on_the_line_between_the_judgements_around_it():
    curve = [(0.0, 0.1), (100.0, 0.3), (300.0, 0.2), (400.0, 0.7), (500.0, 0.1)]
    assert crossing(curve, 0.2) == pytest.approx(50)
    assert crossing(curve, 0.3) == pytest.approx(100)
    assert crossing(curve, 0.45) == pytest.approx(350)
    assert crossing(curve, 0.05) == 0
    assert crossing(curve, 0.71) is None
    assert crossing(curve, None) is crossing([], 0.5) is None


def test_without_evaluation_the_last_rewards_judge():
    rows = [row(step, reward__mean=step / 100) for step in range(1, 21)]
    result = run_result(rows, seed=0, target=0.5)
    assert result.accuracy == pytest.approx(sum(range(11, 21)) / 1000)
    assert result.steps_to_target is None
    assert result.flat_share is None


def test_a_target_that_is_met_before_training_costs_nothing():
    result = run_result(EVALUATED, seed=0, target=0.05)
    costs = (result.steps_to_target, result.rollouts_to_target, result.tokens_to_target)
    assert costs == (0, 0, 0)


def test_the_table_gives_mean_and_range_and_says_how_many_seeds_reached_the_target():
    worse = [
        {**r, "eval/held_out/accuracy": 0.3} if "eval/held_out/accuracy" in r else r
        for r in EVALUATED
    ]
    runs = [run_result(rows, seed, 0.55) for seed, rows in enumerate((EVALUATED, worse))]
    cells = [CellResult(label="x=1", runs=tuple(runs)), CellResult(label="x=2", runs=(runs[1],))]
    header, _, first, second = as_markdown(cells, 0.55, "eval/held_out/accuracy").splitlines()
    assert header.startswith(
        "|  | final eval/held_out/accuracy | best | steps to 0.55 | rollouts to 0.55 |"
    )
    assert first.startswith("| x=1 | 0.400 [0.300, 0.500] | 0.450 [0.300, 0.600] | 1.8 (1 of 2) |")
    assert second.startswith("| x=2 | 0.300 | 0.300 | never | never | never | 0.20 |")
    found = as_json(cells, {"target": 0.55})["cells"][0]["over_seeds"]
    assert found["accuracy"] == {"mean": 0.4, "low": 0.3, "high": 0.5, "count": 2}
    assert found["steps_to_target"]["count"] == 1
    json.dumps(as_json(cells, {}), allow_nan=False)


def test_a_picture_for_what_was_logged_and_none_for_what_was_not(tmp_path):
    curves = {"x=1": [EVALUATED, EVALUATED[:3]], "x=2": [EVALUATED[1:2]]}
    assert plot_curves(curves, "zv/frac_flat", tmp_path / "flat.png")
    assert (tmp_path / "flat.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_curves(curves, "espo/eps_high", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# ---- the command


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[object]:
    """Two losses, one seed, two steps of a model that guesses."""
    folder = tmp_path_factory.mktemp("ablation")
    write_guessing_model(folder / "model")
    rows = [{"id": str(i), "problem": "How many?", "answer": "37"[i % 2]} for i in range(4)]
    prompts = write_lines(folder / "prompts.jsonl", rows)
    return [
        *("--config", ROOT / "configs/rl/debug_gsm8k.toml", "--fix", f"model={folder / 'model'}"),
        *("--fix", f"prompts={prompts}", "--fix", "num_steps=2", "--fix", "eval_interval=1"),
        *("--fix", "parallel.ep=1", "--fix", "checkpoint.interval=1"),
        *("--eval", prompts, "--output", folder / "out", "--target", "0.01", "--jobs", "2"),
    ]


@pytest.mark.long
def test_it_runs_the_matrix_reports_and_repeats_nothing(flags):
    out = Path(str(flags[flags.index("--output") + 1]))
    done = ablate(*flags, "--vary", "loss=grpo,cispo")
    assert done.returncode == 0, done.stderr
    cells = json.loads((out / "report.json").read_text())["cells"]
    assert [cell["label"] for cell in cells] == ["loss=grpo", "loss=cispo"]
    for cell in cells:
        run = out / cell["label"] / "seed_0"
        lines = read_lines(run / "metrics.jsonl")
        (numbers,) = cell["runs"]
        assert numbers["steps"] == 2
        assert numbers["accuracy"] == lines[-1]["eval/held_out/accuracy"]
        assert numbers["tokens"] == lines[-1]["perf/tokens_total"]
        assert (
            f'loss = "{cell["label"].removeprefix("loss=")}"' in (run / "config.toml").read_text()
        )
    table = (out / "report.md").read_text()
    assert table in done.stdout
    assert (out / "eval_held_out_accuracy.png").exists()

    # As if it had been killed between the last checkpoint and the end of one run.
    record = out / "loss=cispo/seed_0/run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    before = read_lines(out / "loss=cispo/seed_0/metrics.jsonl")
    again = ablate(*flags, "--vary", "loss=grpo,cispo")
    assert again.returncode == 0, again.stderr
    assert "loss=grpo, seed 0" not in again.stdout
    assert "loss=cispo, seed 0: started" in again.stdout
    assert read_lines(out / "loss=cispo/seed_0/metrics.jsonl") == before
    assert (out / "report.md").read_text() == table

    other = ablate(*flags, "--vary", "loss=grpo,cispo", "--fix", "temperature=0.9")
    assert other.returncode == 2
    assert "was run with other settings; choose another --output" in other.stderr


def test_a_run_that_fails_is_named_with_its_own_complaint(flags, tmp_path):
    done = ablate(*flags, "--output", tmp_path, "--vary", "loss=grppo")
    assert done.returncode == 2
    assert done.stderr.startswith("error: loss=grppo, seed 0 failed (error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--vary", "loss"], "'loss' is not NAME=VALUE"),
        (["--vary", "loss=grpo,grpo"], "two combinations have the same name"),
        (["--seeds", "0,0"], "two combinations have the same name"),
        (["--seeds", "a"], "--seeds"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--variants", "nowhere.toml"], "--variants nowhere.toml: No such file"),
        (["--variance", "x"], "unrecognized arguments: --variance x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words, complaint, tmp_path):
    done = ablate("--config", __file__, "--output", tmp_path / "out", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_variants_and_axes_and_seeds_make_a_product(tmp_path):
    variants = tmp_path / "variants.toml"
    variants.write_text("[plain.zv.expand]\nenabled = false\n[all]\n[all.losses.espo]\nrho = 0.4\n")
    done = ablate(
        *("--config", __file__, "--variants", variants, "--output", tmp_path, "--dry-run"),
        *("--vary", "loss=grpo,gspo", "--vary", "optim.lr=1e-4", "--seeds", "0,7"),
        *("--fix", "num_steps=3", "--max-tokens", "500", "--nproc-per-node", "2"),
    )
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in done.stdout.splitlines()]
    assert len(commands) == 8
    common = {"--num_steps=3", "--max_generated_tokens=500", "--optim.lr=1e-4", "--resume"}
    assert all(common | {"--nproc-per-node=2"} <= set(words) for words in commands)
    assert [[w for w in words if "zv" in w or "rho" in w] for words in commands] == [
        ["--zv.expand.enabled=False"]
    ] * 4 + [["--losses.espo.rho=0.4"]] * 4
    chosen = [tuple(w for w in words if w.startswith(("--loss=", "--seed="))) for words in commands]
    expected = [
        (f"--loss={loss}", f"--seed={seed}") for loss in ("grpo", "gspo") for seed in (0, 7)
    ]
    assert chosen == expected * 2
    assert len({w for words in commands for w in words if w.startswith("--run_dir")}) == 8
