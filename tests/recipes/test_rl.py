"""`recipes/rl.py` end to end on two ranks with expert parallelism: what it writes, that a killed
run resumes bit for bit, and that batches without signal are defined steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass.config import parse
from compass.rl.config import RlConfig
from compass.rollouts.reader import list_rollouts
from tests.docs.metrics_page import never_logged, unknown
from tests.recipes.case_runner import run_cases
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import ROOT, run_ranks, started_ranks, wait_for_step

WORLD = 2
STEPS = 4
MINIBATCHES = 4
OTHER_LOSSES = ("gspo", "dr_grpo")
TERMS = ("--kl.coef", 0.1, "--entropy_coef", 0.01)
QUESTION = "How many apples are left?"
WRITTEN = (
    "checkpoints",
    "config.toml",
    "environment.json",
    "history.jsonl",
    "ledger.json",
    "metrics.jsonl",
    "model",
    "rollouts",
    "tensorboard",
)
LOGGED = {
    "reward": ["mean", "std", "timeouts", "invalid", "overlap_frac"],
    "zv": ["frac_flat", "all_right_frac", "all_wrong_frac", "other_frac"],
    "actor": ["pg_loss", "entropy", "ppo_kl", "pg_clipfrac", "cut_grad_frac", "grad_norm", "lr"],
    "espo": [
        f"{name}_{group}"
        for name in ("eps", "ratio", "clipfrac", "tokens", "top_token")
        for group in ("high", "low")
    ],
    "mismatch": ["logprob_abs_mean", "logprob_abs_max", "k3_kl", "extreme_frac", "ess"],
    "router": ["flip_rate", "token_flip_rate", "missing_frac", "bytes", "max_violation"],
    "response_length": ["mean", "max", "min", "truncated_frac"],
    "timing_s": [
        "rollout",
        "reward_wait",
        "rank_wait",
        "old_logprobs",
        "update",
        "load_weights",
        "step",
    ],
    "perf": ["tokens_per_s", "padding_frac", "max_memory_gb"],
    "sched": [
        *("length_mae", "tail_idle_frac", "makespan_over_ideal"),
        *("imbalance", "exchange_bytes"),
    ],
}
LEDGER = ["in", "saved", "out", "rollouts", "tokens", "seconds"]
LOGGED |= {f"zv/{stage}": LEDGER for stage in ("prefilter", "expand", "reshape", "residual")}
EVERY_STEP = [f"{area}/{name}" for area, names in LOGGED.items() for name in names]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """In the shape of GSM8K; the guessing model is right about every second time."""
    rows = [
        {"id": f"gsm/{i}", "problem": "She eats. " * (i % 3) + QUESTION, "answer": "37"[i % 2]}
        for i in range(6)
    ]
    return write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def flags(guessing_model, prompts) -> list[str]:
    """One run; to be completed by its folder."""
    values = {
        "config": ROOT / "configs/rl/debug_gsm8k.toml",
        "model": guessing_model,
        "prompts": prompts,
        "num_steps": STEPS,
        "optim.lr": 1e-3,
        "optim.schedule": "linear",
        "pack.num_minibatches": MINIBATCHES,
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("rl") / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*torchrun, str(WORLD), "recipes/rl.py", *flags, "--run_dir", str(run_dir)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert f"step {STEPS}/{STEPS}" in ended.stdout
    return run_dir


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on clock and machine."""
    return [
        {
            key: value
            for key, value in record.items()
            if not key.startswith(("timing_s/", "perf/"))
            and not key.endswith(
                ("/seconds", "/overlap_frac", "tail_idle_frac", "makespan_over_ideal")
            )
        }
        for record in read_lines(run_dir / "metrics.jsonl")
    ]


def on_disk(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """`rows_of` without what depends on the clock."""
    return [{**row, "verifier_seconds": 0.0} for row in rows_of(run_dir, step)]


def rows_of(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The rollouts of a step, of all ranks."""
    return [
        row
        for file in list_rollouts(run_dir).files
        if file.step == step
        for row in file.table().to_pylist()
    ]


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


# ---- a run


def test_the_run_folder_holds_everything(uninterrupted):
    assert sorted(path.name for path in uninterrupted.iterdir()) == sorted(WRITTEN)
    checkpoints = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert checkpoints == ["step_000002", "step_000004"]


def test_every_step_logs_the_keys_of_the_method(uninterrupted):
    lines = read_lines(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert not set(EVERY_STEP) - line.keys()
        assert all(line[key] is not None for key in EVERY_STEP)
    assert all("timing_s/checkpoint" in line for line in lines[1::2])


def test_every_minibatch_is_a_step_of_the_optimizer_with_fewer_prompts_on_a_rank(uninterrupted):
    """Four prompts a step, two on each rank."""
    state = json.loads((uninterrupted / "checkpoints/step_000004/state.json").read_text())
    assert state["trainer"] == {"num_updates": STEPS * MINIBATCHES, "num_skipped": 0}


def test_rewards_are_verdicts_of_the_verifier_and_fp32_replay_is_exact(uninterrupted):
    """The model writes "#### 3" or "#### 7" by about even chances; one of them is right."""
    for line in read_lines(uninterrupted / "metrics.jsonl"):
        assert 0.1 < line["reward/mean"] < 0.9
        assert line["reward/invalid"] == line["reward/timeouts"] == 0
        assert line["router/missing_frac"] == 0
        assert line["mismatch/logprob_abs_max"] < 1e-4


def test_the_resolved_config_reads_back(uninterrupted, flags):
    path = str(uninterrupted / "config.toml")
    expected = parse(RlConfig, [*flags, "--run_dir", str(uninterrupted)], description="")
    assert parse(RlConfig, ["--config", path], description="") == expected


def test_transformers_loads_the_trained_model_and_its_tokenizer(uninterrupted, guessing_model):
    directory = uninterrupted / "model"
    model = AutoModelForCausalLM.from_pretrained(directory)
    stored = load_file(directory / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in stored.values())
    assert stored.keys() == load_file(guessing_model / "model.safetensors").keys()
    assert weights(directory) != weights(guessing_model)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=8)[0]
    assert tokenizer.decode(answer).endswith(("#### 3<|im_end|>", "#### 7<|im_end|>"))


def test_every_rollout_is_on_disk_and_says_what_the_metrics_say(uninterrupted):
    rollouts = list_rollouts(uninterrupted)
    assert rollouts.steps == [1, 2, 3, 4]
    assert [file.rank for file in rollouts.files] == [0, 1] * STEPS
    assert rollouts.missing == ()
    for line in read_lines(uninterrupted / "metrics.jsonl"):
        rows = rows_of(uninterrupted, line["step"])
        spent = line["zv/base/rollouts"] + line["zv/expand/rollouts"]
        assert len(rows) == spent
        assert {row["writer"] for row in rows} == {0, 1}
        assert mean(row["reward"] for row in rows) == pytest.approx(line["reward/mean"])
        assert mean(len(row["completion_ids"]) for row in rows) == pytest.approx(
            line["response_length/mean"]
        )
        of_groups = {row["group"]: row["saved_by"] for row in rows}
        for stage in ("base", "expand", "reshape", "residual"):
            assert list(of_groups.values()).count(stage) == line[f"zv/{stage}/saved"]
        trained = [row for row in rows if row["trainer_logprobs"] is not None]
        assert len(trained) / len(rows) == pytest.approx(line["actor/trained_frac"])
        assert {row["minibatch"] for row in trained} <= set(range(MINIBATCHES))
        gaps = [
            abs(ours - theirs)
            for row in trained
            for ours, theirs in zip(row["trainer_logprobs"], row["rollout_logprobs"], strict=True)
        ]
        assert mean(gaps) == pytest.approx(line["mismatch/logprob_abs_mean"])
        entropies = [entropy for row in trained for entropy in row["entropies"]]
        assert mean(entropies) == pytest.approx(line["actor/entropy"], rel=1e-5)


def test_rollouts_went_through_the_chat_template_and_pieces_are_their_text(uninterrupted):
    for row in rows_of(uninterrupted, 1):
        assert row["prompt"].startswith("<|im_start|>user")
        assert QUESTION in row["prompt"]
        assert "<|im_start|>assistant" in row["prompt"]
        assert "#### " in row["completion"]
        assert b"".join(row["pieces"]).decode() == row["completion"]
        assert row["verdict"] == float(row["answer"] == row["expected"])


def test_a_file_says_when_its_rank_did_what_and_how_busy_experts_were(uninterrupted):
    steps = read_lines(uninterrupted / "metrics.jsonl")
    for file in list_rollouts(uninterrupted).files:
        names = {name for name, _, _ in file.told["spans"]}
        assert {"rollout", "old_logprobs", "update", "load_weights", "step"} <= names
        (step,) = [(b, e) for name, b, e in file.told["spans"] if name == "step"]
        assert step[0] == 0
        assert all(0 <= b <= e <= step[1] for _, b, e in file.told["spans"])
        if file.rank == 0:
            assert step[1] == pytest.approx(steps[file.step - 1]["timing_s/step"])
    for line in steps:
        load_LE = sum(
            np.array(file.told["expert_load"])
            for file in list_rollouts(uninterrupted).files
            if file.step == line["step"]
        )
        violation_L = load_LE.max(axis=1) / load_LE.mean(axis=1) - 1
        assert violation_L.max() == pytest.approx(line["router/max_violation"])


# ---- resume


def test_a_run_killed_after_a_checkpoint_resumes_bit_for_bit(uninterrupted, flags, tmp_path):
    command = ["recipes/rl.py", *flags, "--run_dir", str(tmp_path)]
    with started_ranks(command, WORLD) as ranks:
        # Killed in its fourth step: the third is logged, but is in no checkpoint.
        wait_for_step(tmp_path, 3, ranks[0])
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert read_lines(tmp_path / "metrics.jsonl")[2]["step"] == 3
    left = list_rollouts(tmp_path)
    assert left.steps[:2] == [1, 2]
    assert not any("cannot be read" in line for line in left.missing)
    assert not (tmp_path / "model").exists()

    resumed = run_ranks([*command, "--resume"], WORLD)
    assert [rank.code for rank in resumed] == [0, 0], resumed[0].stderr
    *told, line = resumed[0].stdout.splitlines()[:7]
    assert told[-1] == f"resumed after step {2}"
    assert line.startswith(f"step 3/{STEPS}")
    assert weights(tmp_path / "model") == weights(uninterrupted / "model")
    assert records(tmp_path) == records(uninterrupted)
    assert list_rollouts(tmp_path).missing == ()
    for step in range(1, STEPS + 1):
        assert on_disk(tmp_path, step) == on_disk(uninterrupted, step)


# ---- other batches and modes, all in one pair of processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def ended(folder, flags, random_model):
    rows = [{"id": str(i), "problem": QUESTION, "answer": "123456789"} for i in range(4)]
    hopeless = write_lines(folder / "hopeless.jsonl", rows)
    one_hopeless = write_lines(folder / "one_hopeless.jsonl", [rows[0], rows[1] | {"answer": "3"}])
    all_flat = ["--model", random_model, "--prompts", hopeless, "--max_completion_tokens", 8]
    verdicts_only = ["--zv.reshape.enabled", "false", "--zv.residual.enabled", "false"]
    cases = {
        "all_flat": [*all_flat, *verdicts_only],
        "all_flat_residual": all_flat,
        "flat_on_one_rank": [
            *("--prompts", one_hopeless, "--num_prompts_per_step", 2, "--pack.num_minibatches", 2),
            *("--zv.prefilter.enabled", "false", *verdicts_only),
        ],
        "fewer_prompts_than_ranks": ["--num_prompts_per_step", 1, "--pack.num_minibatches", 1],
        "raw": ["--raw", "--num_steps", 1],
        "r2": ["--replay", "r2"],
        "off": ["--replay", "off"],
        **{loss: ["--loss", loss] for loss in OTHER_LOSSES},
        "corrected": ["--correction.mode", "tis"],
        "fp8": ["--generator.weights", "fp8", "--generator.kv_dtype", "fp8"],
        "evaluated": [
            "--eval.held_out.data",
            flags[flags.index("--prompts") + 1],
            "--eval_interval",
            2,
        ],
        "budgeted": ["--max_generated_tokens", 60, "--report.keep_steps", 0],
        "recompute": ["--policy.activation_checkpointing"],
        "terms": TERMS,
        "terms_in_two": [*TERMS, "--max_generated_tokens", 60],
    }
    commands = {
        name: ("rl", *flags, *map(str, case), "--run_dir", str(folder / name))
        for name, case in cases.items()
    }
    second = ("--run_dir", str(folder / "terms_in_two"), "--resume")
    commands["terms_resumed"] = ("rl", *flags, *map(str, TERMS), *second)
    return run_cases(commands, folder / "outputs", WORLD)


def finished(ended, folder: Path, name: str) -> Path:
    assert [rank.code for rank in ended[name]] == [0, 0], ended[name][0].stderr
    return folder / name


def test_flat_batches_leave_the_weights_alone_without_shaping_and_rl_zvp(
    ended, folder, random_model
):
    run_dir = finished(ended, folder, "all_flat")
    lines = records(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["zv/frac_flat"] == line["zv/all_wrong_frac"] == 1
        assert line["actor/trained_frac"] == 0
        assert "actor/grad_norm" not in line
    assert weights(run_dir / "model") == weights(random_model)
    state = json.loads((run_dir / "checkpoints/step_000004/state.json").read_text())
    assert state["step"] == 4


def test_flat_batches_are_trained_by_shaping_and_rl_zvp(ended, folder, random_model):
    run_dir = finished(ended, folder, "all_flat_residual")
    for line in records(run_dir):
        assert line["zv/frac_flat"] == line["zv/all_wrong_frac"] == 1
        # Some but not all: shaping punishes wrong answers, and praises none.
        assert 0 < line["actor/trained_frac"] < 1
        assert line["actor/grad_norm"] > 0
    assert weights(run_dir / "model") != weights(random_model)


def test_a_batch_that_is_flat_on_one_rank_trains_on_the_other(ended, folder, guessing_model):
    run_dir = finished(ended, folder, "flat_on_one_rank")
    lines = records(run_dir)
    assert any(line["zv/frac_flat"] == 0.5 for line in lines)
    assert all(line["zv/all_wrong_frac"] == 0.5 for line in lines)
    assert weights(run_dir / "model") != weights(guessing_model)


def test_a_rank_without_a_prompt_takes_part(ended, folder, guessing_model):
    run_dir = finished(ended, folder, "fewer_prompts_than_ranks")
    assert len(records(run_dir)) == STEPS
    assert weights(run_dir / "model") != weights(guessing_model)


def test_raw_prompts_meet_no_template(ended, folder):
    prompts = {row["prompt"] for row in rows_of(finished(ended, folder, "raw"), 1)}
    assert any(QUESTION in prompt for prompt in prompts)
    assert not any("<|im_start|>user" in prompt for prompt in prompts)


def test_flips_are_there_where_routes_were_replayed(ended, folder, uninterrupted):
    off = rows_of(finished(ended, folder, "off"), 1)
    assert all(row["flips"] is None for row in off)
    trained = [row for row in rows_of(uninterrupted, 1) if row["entropies"] is not None]
    assert all(len(row["flips"]) == len(row["completion_ids"]) for row in trained)


def test_rollouts_can_be_left_out(ended, folder):
    assert not (finished(ended, folder, "budgeted") / "rollouts").exists()


@pytest.mark.parametrize("mode", ["r2", "off"])
def test_other_replay_modes_start_from_the_same_rollout(mode, ended, folder, uninterrupted):
    first = records(finished(ended, folder, mode))[0]
    expected = records(uninterrupted)[0]
    for key in ("reward/mean", "zv/frac_flat", "response_length/mean", "router/bytes"):
        assert first[key] == expected[key]
    assert ("router/flip_rate" in first) == (mode == "r2")


@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_other_losses_train(loss, ended, folder, guessing_model):
    run_dir = finished(ended, folder, loss)
    assert all(line["actor/grad_norm"] > 0 for line in records(run_dir))
    assert weights(run_dir / "model") != weights(guessing_model)


def test_recomputed_activations_change_nothing(ended, folder, uninterrupted):
    assert records(finished(ended, folder, "recompute")) == records(uninterrupted)
    assert weights(folder / "recompute/model") == weights(uninterrupted / "model")


def test_correction_of_an_exact_generator_changes_next_to_nothing(ended, folder, uninterrupted):
    first, expected = records(finished(ended, folder, "corrected"))[0], records(uninterrupted)[0]
    assert first["reward/mean"] == expected["reward/mean"]
    assert first["actor/grad_norm"] == pytest.approx(expected["actor/grad_norm"], rel=1e-2)


def test_a_generator_in_fp8_is_logged_and_corrected(ended, folder, uninterrupted, guessing_model):
    run_dir = finished(ended, folder, "fp8")
    for line, exact in zip(records(run_dir), records(uninterrupted), strict=True):
        assert line["fp8/layers"] > 0
        assert 0.01 < line["fp8/rel_err_max"] < 0.03
        assert 0 <= line["fp8/clip_frac"] < 0.01
        assert line["mismatch/logprob_abs_mean"] > 100 * exact["mismatch/logprob_abs_mean"]
        assert 0.5 < line["correction/mean_weight"] < 1.5
        assert line["correction/mean_weight"] != 1
        assert not {"fp8/layers", "correction/mean_weight"} & exact.keys()
    assert weights(run_dir / "model") != weights(guessing_model)


def test_a_run_evaluates_before_the_first_step_and_between(ended, folder):
    lines = records(finished(ended, folder, "evaluated"))
    assert [line["step"] for line in lines if "eval/held_out/accuracy" in line] == [0, 2, 4]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_with_terms_flat_groups_are_trained_too_and_the_start_stays_the_reference(ended, folder):
    lines = records(finished(ended, folder, "terms"))
    assert any(line["zv/frac_flat"] > 0 for line in lines)
    assert all(line["actor/trained_frac"] == 1 for line in lines)
    assert all(line["actor/kl_ref"] > 0 for line in lines)
    assert [rank.code for rank in ended["terms_resumed"]] == [0, 0]
    assert records(finished(ended, folder, "terms_in_two")) == lines


def test_what_runs_log_is_on_the_page_of_metrics_and_the_other_way_round(
    ended, folder, uninterrupted
):
    runs = [uninterrupted, *(path.parent for path in folder.glob("*/metrics.jsonl"))]
    lines = [line for run_dir in runs for line in read_lines(run_dir / "metrics.jsonl")]
    logged = {key for line in lines for key in line} - {"step"}
    assert unknown(logged) == []
    elsewhere = {"perf/mfu", "correction/dropped_frac", "own/<name>"}
    assert never_logged(logged) == elsewhere | {"eval/loss", "sft/nll", "sft/epoch"}


def test_a_run_ends_with_its_budget_of_tokens(ended, folder, uninterrupted):
    """About 48 tokens a step: the second exceeds 60. What it did until then is the same."""
    lines = records(finished(ended, folder, "budgeted"))
    assert lines == records(uninterrupted)[:2]
    assert (folder / "budgeted/model/model.safetensors").exists()
