"""What a run leaves is never lost: its folder is not written over, it goes on with what it was
begun with, and it says so when it is at an end or came to no good. In this process, on one rank."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from compass.config import parse
from compass.gym.pool.pool import VerifierPool
from compass.models.hf.export import export_checkpoint
from compass.rl import writer
from compass.rl.config import RlConfig
from compass.run.settings import FIXED
from compass.train.optim_config import OptimConfig
from recipes import sft
from tests.recipes.case_runner import exit_code
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import ROOT, Ended
from tests.rl.rollout_verifiers import break_down

CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("How many apples?", "three"), ("How many pears?", "seven"))
]
PROMPTS = [{"id": str(i), "problem": f"{i} apples?", "answer": "37"[i % 2]} for i in range(4)]
WEIGHTS = "model/model.safetensors"

Launch = Callable[..., Ended]


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str]) -> Launch:
    """How a recipe ends, given its name and its flags."""

    def launched(recipe: str, flags: dict[str, Any], **changes: Any) -> Ended:
        capsys.readouterr()
        words = [f"--{name.replace('__', '.')}={v}" for name, v in (flags | changes).items()]
        code = exit_code([recipe, *words])
        out, err = capsys.readouterr()
        return Ended(code=code, stdout=out, stderr=err)

    return launched


@pytest.fixture
def chats(random_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Flags of a run of `sft` that ends after five steps."""
    return {
        "model": random_model,
        "data.path": write_lines(tmp_path / "chats.jsonl", CHATS),
        "data.num_examples_per_step": 1,
        "data.max_len": 100,
        "parallel.device": "cpu",
        "optim.lr": 0.01,
        "num_steps": 5,
        "checkpoint.interval": 2,
        "run_dir": tmp_path / "run",
    }


@pytest.fixture
def rollouts(guessing_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Flags of a run of `rl` that ends after two steps."""
    return {
        "config": ROOT / "configs/rl/debug_gsm8k.toml",
        "model": guessing_model,
        "prompts": write_lines(tmp_path / "prompts.jsonl", PROMPTS),
        "parallel.ep": 1,
        "num_steps": 2,
        "num_prompts_per_step": 2,
        "group_size": 2,
        "checkpoint.interval": 1,
        "run_dir": tmp_path / "run",
    }


def done(ended: Ended) -> Ended:
    assert ended.code == 0, ended.stderr
    return ended


def refused(ended: Ended, message: str) -> None:
    assert ended.code == 2, ended.stderr
    assert message in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_lines(run_dir / "metrics.jsonl")]


# ---- a folder is not written over


def test_a_folder_with_a_run_in_it_is_left_as_it_is(launch, chats):
    done(launch("sft", chats))
    before = files(chats["run_dir"])
    refused(launch("sft", chats), "already holds a run (checkpoints, metrics.jsonl, model)")
    assert files(chats["run_dir"]) == before


def test_a_folder_is_not_written_over_before_its_first_checkpoint_either(launch, chats):
    done(launch("sft", chats, checkpoint__interval=0, num_steps=1))
    run_dir = chats["run_dir"]
    refused(launch("sft", chats), "already holds a run (metrics.jsonl, model); continue it with")
    refused(launch("sft", chats, resume=True), "holds a model and no checkpoint to continue from")
    shutil.rmtree(run_dir / "model")
    before = files(run_dir)
    refused(launch("sft", chats), "already holds a run (metrics.jsonl)")
    assert files(run_dir) == before
    done(launch("sft", chats, resume=True, num_steps=1))
    assert steps(run_dir) == [1], "asked to go on, it started again from nothing"


# ---- a run that is over


def test_the_last_step_is_saved_and_a_finished_run_ends_at_once(launch, chats):
    done(launch("sft", chats))
    run_dir = chats["run_dir"]
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "step_000004",
        "step_000005",
    ]
    exported, written_at = files(run_dir / "model"), (run_dir / WEIGHTS).stat().st_mtime_ns
    lines = (run_dir / "metrics.jsonl").read_bytes()

    assert "is finished after step 5" in done(launch("sft", chats, resume=True)).stdout
    assert (run_dir / "metrics.jsonl").read_bytes() == lines
    assert (run_dir / WEIGHTS).stat().st_mtime_ns == written_at

    shutil.rmtree(run_dir / "model")
    done(launch("sft", chats, resume=True))
    assert files(run_dir / "model") == exported
    assert (run_dir / "metrics.jsonl").read_bytes() == lines


def test_a_model_older_than_the_last_checkpoint_is_exported_anew(launch, chats):
    """As when a run that had been finished was prolonged, and killed before its export."""
    done(launch("sft", chats))
    weights = chats["run_dir"] / WEIGHTS
    exported = weights.read_bytes()
    weights.write_bytes(b"of an earlier step")
    os.utime(weights.with_name("config.json"), (0, 0))
    done(launch("sft", chats, resume=True))
    assert weights.read_bytes() == exported


def test_a_spent_budget_is_saved_and_ends_a_resumed_run_at_once(launch, rollouts):
    budget = {"num_steps": 50, "max_generated_tokens": 60, "checkpoint.interval": 40}
    done(launch("rl", rollouts | budget))
    run_dir = rollouts["run_dir"]
    logged, exported = steps(run_dir), files(run_dir / "model")
    assert 1 < len(logged) < 40
    shutil.rmtree(run_dir / "model")
    ended = done(launch("rl", rollouts | budget, resume=True))
    assert f"is finished after step {logged[-1]}" in ended.stdout
    assert steps(run_dir) == logged
    assert files(run_dir / "model") == exported


# ---- a run that goes on with other settings


def test_a_resumed_run_says_what_changed_and_keeps_the_earlier_config(launch, rollouts):
    done(launch("rl", rollouts))
    run_dir = rollouts["run_dir"]
    earlier = (run_dir / "config.toml").read_bytes()
    moved = shutil.copy(rollouts["prompts"], rollouts["prompts"].with_name("moved.jsonl"))
    changes = {"num_steps": 3, "optim.lr": 0.5, "loss": "grpo", "group_size": 4, "prompts": moved}
    ended = done(launch("rl", rollouts | changes, resume=True))
    for line in (
        "num_steps: 2 -> 3",
        f"optim.lr: {OptimConfig().lr} -> 0.5",
        "loss: espo -> grpo",
        "group_size: 2 -> 4",
        f"prompts: {rollouts['prompts']} -> {moved}",
    ):
        assert line in ended.stdout
    assert (run_dir / "config.step_000002.toml").read_bytes() == earlier
    assert tomllib.loads((run_dir / "config.toml").read_text())["optim"]["lr"] == 0.5
    assert steps(run_dir) == [1, 2, 3]


def test_a_run_resumed_as_it_was_says_nothing_and_keeps_one_config(launch, chats):
    done(launch("sft", chats, num_steps=2))
    ended = done(launch("sft", chats, num_steps=2, resume=True))
    assert "->" not in ended.stdout
    assert not list(chats["run_dir"].glob("config.step*"))


def test_what_a_saved_state_depends_on_cannot_change(launch, rollouts, random_model, tmp_path):
    done(launch("rl", rollouts, num_steps=1))
    before = files(rollouts["run_dir"])
    other = write_lines(tmp_path / "other.jsonl", [p | {"answer": "9"} for p in PROMPTS])
    for name, value, message in (
        ("seed", 1, "seed: 0 -> 1: a resumed run cannot change seed, because prompts and"),
        ("raw", True, "raw: False -> True: a resumed run cannot change raw"),
        ("curriculum.enabled", True, "curriculum.enabled: False -> True: a resumed run cannot"),
        ("prompts", other, f" -> {other}: a resumed run cannot change prompts"),
        ("tokenizer", _other_template(random_model, tmp_path), "cannot change tokenizer"),
    ):
        refused(launch("rl", rollouts | {name: value}, resume=True), message)
    rollouts["prompts"].write_text(other.read_text())
    refused(launch("rl", rollouts, resume=True), "(another content): a resumed run cannot change")
    assert files(rollouts["run_dir"]) == before


def _other_template(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder / "other")
    template = folder / "other" / "chat_template.jinja"
    template.write_text(template.read_text() + "Answer:")
    return folder / "other"


def test_other_chats_of_the_same_length_are_refused(launch, chats):
    done(launch("sft", chats, num_steps=1))
    write_lines(chats["data.path"], reversed(CHATS))
    refused(launch("sft", chats, resume=True), "cannot change data.path, because")
    write_lines(chats["data.path"], CHATS)
    refused(launch("sft", chats | {"data.shuffle": False}, resume=True), "data.shuffle")
    refused(launch("sft", chats | {"data.max_len": 90}, resume=True), "data.max_len: 100 -> 90")


@pytest.mark.parametrize("field", FIXED)
def test_every_field_that_is_fixed_exists(field):
    def has(config: Any, path: str) -> bool:
        name, _, rest = path.partition(".")
        return hasattr(config, name) and (not rest or has(getattr(config, name), rest))

    configs = (
        parse(RlConfig, ["--model=m", "--prompts=p"], description=""),
        parse(sft.Config, ["--model=m", "--data.path=p"], description=""),
    )
    assert any(has(config, field) for config in configs)


# ---- a run that comes to no good


def failed(ended: Ended, reason: str) -> None:
    assert ended.code == 1, ended.stderr
    assert reason in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


def test_three_steps_without_a_finite_gradient_end_supervised_training(launch, chats):
    ended = launch("sft", chats | {"optim.lr": 1e30, "num_steps": 100})
    failed(ended, "no finite gradient but zero in 3 steps in a row (")
    assert len(steps(chats["run_dir"])) < 10
    assert not (chats["run_dir"] / "model").exists()


def test_a_short_run_without_a_finite_gradient_fails_too(launch, chats):
    done(launch("sft", chats | {"optim.lr": 1e30, "num_steps": 1}))
    shutil.move(chats["run_dir"] / "model", chats["run_dir"].with_name("broken"))
    chats |= {"model": chats["run_dir"].with_name("broken")}
    shutil.rmtree(chats["run_dir"])
    failed(
        launch("sft", chats, num_steps=1), "no finite gradient but zero in step 1, so nothing was"
    )


def test_three_steps_without_a_finite_gradient_end_reinforcement_learning(launch, rollouts):
    ended = launch("rl", rollouts | {"optim.lr": 1e6, "num_steps": 100})
    failed(ended, "no finite gradient but zero in 3 steps in a row (")
    assert len(steps(rollouts["run_dir"])) < 20


def test_three_steps_without_a_valid_verdict_end_the_run(launch, rollouts, monkeypatch):
    monkeypatch.setattr(writer, "VerifierPool", partial(VerifierPool, verify=break_down))
    ended = launch("rl", rollouts | {"num_steps": 100})
    failed(ended, "no valid verdict in 3 steps in a row (1, 2, 3), so nothing was learned")
    assert steps(rollouts["run_dir"]) == [1, 2]


def test_a_reward_of_ones_own_trains_a_run_and_its_change_is_told(launch, rollouts, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def f(completion):\n    return {'score': -len(completion), 'sevens': 7}\n")
    flags = {"gym.rewards.short.fn": f"{own}:f", "gym.rewards.short.replaces": True}
    done(launch("rl", rollouts | flags | {"num_steps": 1}))
    run_dir = rollouts["run_dir"]
    (metrics,) = [line for line in read_lines(run_dir / "metrics.jsonl") if line["step"] == 1]
    assert metrics["reward/mean"] == metrics["reward/short/mean"] < 0
    assert metrics["reward/short/sevens/mean"] == 7
    assert metrics["reward/verdict"] == 0
    assert "# sha256 of gym.rewards.short.fn: " in (run_dir / "config.toml").read_text()
    own.write_text("def f(completion):\n    return -2.0 * len(completion)\n")
    ended = done(launch("rl", rollouts | flags | {"num_steps": 2}, resume=True))
    assert "gym.rewards.short.fn" in ended.stdout
    assert "(another content)" in ended.stdout


ASKED = [
    {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"{i} apples?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "37"[i % 2]},
        "extra_info": {"split": "train", "index": i},
    }
    for i in range(4)
]
OF_OTHERS = {
    "verl, custom": "def f(data_source, solution_str, ground_truth, extra_info=None):\n"
    "    return float(ground_truth in solution_str and extra_info['index'] < 4)\n",
    "verl, its own": "def f(solution_str, ground_truth, method='strict'):\n"
    "    return 1.0 if ground_truth in solution_str else 0.0\n",
    "TRL": "def f(completions, reward_model, **kwargs):\n"
    "    texts = [completion[0]['content'] for completion in completions]\n"
    "    return [float(r['ground_truth'] in t) for t, r in zip(texts, reward_model)]\n",
    "TRL, with prompts": "def f(prompts, completions, reward_model, **kwargs):\n"
    "    assert prompts[0][-1]['content'].endswith('apples?')\n"
    "    return [float(r['ground_truth'] in c[0]['content'])\n"
    "            for c, r in zip(completions, reward_model)]\n",
}


@pytest.mark.parametrize("source", OF_OTHERS.values(), ids=OF_OTHERS)
def test_verls_parquet_and_the_rewards_of_others_train_without_an_edit(
    launch, rollouts, tmp_path, source
):
    (tmp_path / "reward.py").write_text(source)
    parquet = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ASKED), parquet)
    mine = {
        "prompts": parquet,
        "gym.rewards.mine.fn": f"{tmp_path}/reward.py:f",
        "gym.rewards.mine.replaces": True,
        "num_steps": 1,
        "num_prompts_per_step": 4,
        "group_size": 8,
    }
    done(launch("rl", rollouts | mine))
    (metrics,) = [x for x in read_lines(tmp_path / "run" / "metrics.jsonl") if x["step"] == 1]
    assert metrics["reward/invalid"] == 0
    assert 0 < metrics["reward/mine/mean"] == metrics["reward/mean"] < 1


# ---- models that a run leaves, and checkpoints as models


def test_a_checkpoint_or_a_run_is_a_model_with_the_loss_it_had(launch, chats, tmp_path):
    """Only its weights are taken: the loss before the first step is that of the save."""
    validated = {"data.validation": chats["data.path"], "data.validation_interval": 1}
    done(launch("sft", chats | validated))
    losses = {
        line["step"]: line["eval/loss"] for line in read_lines(tmp_path / "run/metrics.jsonl")
    }
    newest = tmp_path / "run/checkpoints/step_000005"
    for number, (model, step) in enumerate(
        ((tmp_path / "run", 5), (newest, 5), (newest.with_name("step_000004"), 4))
    ):
        run_dir = tmp_path / f"next_{number}"
        changes = {"model": model, "run_dir": run_dir, "num_steps": 1}
        ended = done(launch("sft", chats | validated | changes))
        assert f"starts from the weights at step {step} of " in ended.stdout
        first = read_lines(run_dir / "metrics.jsonl")[0]
        assert first["step"] == 0
        assert first["eval/loss"] == losses[step] != losses[0]


def test_a_damaged_checkpoint_is_no_model(launch, chats, tmp_path):
    done(launch("sft", chats, num_steps=1))
    damaged = tmp_path / "run/checkpoints/step_000001/state.json"
    damaged.write_text("{}")
    other = {"model": damaged.parent, "run_dir": tmp_path / "next"}
    refused(launch("sft", chats | other), f"{damaged} has 2 bytes instead of")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    refused(launch("sft", chats | other | {"model": tmp_path / "empty"}), "holds no checkpoint")


def test_an_export_of_every_second_step_is_that_of_its_checkpoint(launch, chats, tmp_path):
    done(launch("sft", chats | {"export.interval": 2}))
    exports = tmp_path / "run/exports"
    assert sorted(p.name for p in exports.iterdir()) == ["step_000002", "step_000004"]
    export_checkpoint(tmp_path / "run/checkpoints/step_000004", tmp_path / "out")
    assert files(exports / "step_000004") == files(tmp_path / "out")
    assert files(exports / "step_000004") != files(exports / "step_000002")
    refused(
        launch("sft", chats), "already holds a run (checkpoints, metrics.jsonl, exports, model)"
    )


def test_models_keep_the_dtype_they_came_in_unless_another_is_named(launch, chats, tmp_path):
    came_in = tmp_path / "bfloat16"
    done(launch("sft", chats | {"export.dtype": "bfloat16", "num_steps": 1}))
    shutil.move(tmp_path / "run/model", came_in)
    runs = {"auto": "bfloat16", "float32": "float32"}
    for asked, dtype in runs.items():
        changes = {"model": came_in, "export.dtype": asked, "run_dir": tmp_path / asked}
        done(launch("sft", chats | changes | {"num_steps": 1}))
        assert f'"torch_dtype": "{dtype}"' in (tmp_path / asked / "model/config.json").read_text()


def test_epochs_that_are_resumed_equal_epochs_that_were_not_interrupted(launch, chats, tmp_path):
    epochs = {"num_epochs": 3, "data.num_examples_per_step": 1, "checkpoint.interval": 1}
    done(launch("sft", chats | epochs))
    other = {"run_dir": tmp_path / "other"}
    done(launch("sft", chats | epochs | other | {"num_epochs": 1}))
    done(launch("sft", chats | epochs | other, resume=True))
    assert steps(tmp_path / "other") == steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "other" / WEIGHTS).read_bytes() == (tmp_path / "run" / WEIGHTS).read_bytes()
    of_epochs = [
        [x["sft/epoch"] for x in read_lines(tmp_path / n / "metrics.jsonl")]
        for n in ("run", "other")
    ]
    assert of_epochs[0] == of_epochs[1] == [0, 0, 1, 1, 2, 2]
