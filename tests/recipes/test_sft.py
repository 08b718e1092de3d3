"""`recipes/sft.py` end to end on two ranks with expert parallelism: it learns, and a killed run
resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass.config import parse
from recipes.sft import Config
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import run_ranks, started_ranks, wait_for_step

WORLD = 2
STEPS = 30
INTERVAL = 20
LESSON = {"How many apples?": "three", "How many pears?": "seven"}
CLOCKS = ("timing_s/", "perf/")


@pytest.fixture(scope="module")
def command(random_model, tmp_path_factory) -> list[str]:
    """One run; to be completed by its folder. Ten rows in steps of four: epochs end mid-step."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in LESSON.items()
    ]
    path = write_lines(tmp_path_factory.mktemp("chats") / "chats.jsonl", rows * 5)
    values = {
        "model": random_model,
        "data.path": path,
        "data.num_examples_per_step": 4,
        "data.max_len": 100,
        "data.max_tokens_per_microbatch": 60,
        "num_steps": STEPS,
        "parallel.ep": 2,
        "parallel.device": "cpu",
        "optim.lr": 1e-2,
        "optim.schedule": "linear",
        "checkpoint.interval": INTERVAL,
    }
    return ["recipes/sft.py", *(f"--{name}={value}" for name, value in values.items()), "--run_dir"]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    ended = run_ranks([*command, run_dir], WORLD)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    return run_dir


def records(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on clock and machine."""
    return [
        {key: value for key, value in record.items() if not key.startswith(CLOCKS)}
        for record in read_lines(run_dir / "metrics.jsonl")
    ]


def test_the_lesson_is_learned(uninterrupted):
    model = AutoModelForCausalLM.from_pretrained(uninterrupted / "model")
    tokenizer = AutoTokenizer.from_pretrained(uninterrupted / "model")
    for question, answer in LESSON.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        written = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0]
        assert tokenizer.decode(written).endswith(f"assistant\n{answer}<|im_end|>")


def test_every_step_is_logged(uninterrupted):
    lines = read_lines(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    expected = {"sft/nll", "actor/grad_norm", "actor/lr", "perf/tokens_per_s", "timing_s/step"}
    assert all(not expected - line.keys() for line in lines)
    assert lines[-1]["sft/nll"] < 0.1 < lines[0]["sft/nll"]
    assert lines[-1]["sft/epoch"] == (STEPS - 1) * 4 // 10


def test_the_resolved_config_reads_back(uninterrupted, command):
    expected = parse(Config, [*command[1:], str(uninterrupted)], description="")
    path = str(uninterrupted / "config.toml")
    assert parse(Config, ["--config", path], description="") == expected


def test_a_run_killed_after_a_checkpoint_resumes_bit_for_bit(uninterrupted, command, tmp_path):
    with started_ranks([*command, tmp_path], WORLD) as ranks:
        wait_for_step(tmp_path, INTERVAL + 1, ranks[0])
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not (tmp_path / "model").exists()

    resumed = run_ranks([*command, tmp_path, "--resume"], WORLD)
    assert [rank.code for rank in resumed] == [0, 0], resumed[0].stderr
    assert resumed[0].stdout.splitlines()[0].startswith(f"step {INTERVAL + 1}/{STEPS}")
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (uninterrupted / weights).read_bytes()
    assert records(tmp_path) == records(uninterrupted)


def test_a_run_in_bfloat16_leaves_a_model_of_half_the_size(command, uninterrupted, tmp_path):
    ended = run_ranks(
        [*command, tmp_path / "run", "--policy.dtype=bfloat16", "--num_steps=1"], WORLD
    )
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    sizes = [
        (folder / "model/model.safetensors").stat().st_size
        for folder in (uninterrupted, tmp_path / "run")
    ]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=0.05)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", dtype="auto")
    assert model.dtype == torch.bfloat16
