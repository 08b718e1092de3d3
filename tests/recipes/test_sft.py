"""`recipes/sft.py` end to end on two ranks with expert parallelism: it learns, and a killed run
resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass.config import parse
from recipes.sft import Config
from tests.docs.metrics_page import unknown
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.rank_processes import run_ranks, started_ranks, wait_for_step

WORLD = 2
STEPS = 30
INTERVAL = 20
LESSON = {"How many apples?": "three", "How many pears?": "seven"}
HELD_OUT = {
    "How many plums, if any, are left?": "three or four",
    "How many figs?": "nine",
    "How many nuts?": "eleven",
}
"""Of three rows one rank has two, in passes of their own."""
VALIDATION_INTERVAL = 15
CLOCKS = ("timing_s/", "perf/")


def chat(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture(scope="module")
def command(random_model, tmp_path_factory) -> list[str]:
    """One run; to be completed by its folder. Ten rows in steps of four: epochs end mid-step."""
    rows = [chat(question, answer) for question, answer in LESSON.items()]
    folder = tmp_path_factory.mktemp("chats")
    path = write_lines(folder / "chats.jsonl", rows * 5)
    held_out = write_lines(folder / "held_out.jsonl", [chat(*row) for row in HELD_OUT.items()])
    values = {
        "model": random_model,
        "data.path": path,
        "data.validation": held_out,
        "data.validation_interval": VALIDATION_INTERVAL,
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


def test_what_it_logs_is_on_the_page_of_metrics(uninterrupted):
    logged = {key for line in records(uninterrupted) for key in line} - {"step"}
    assert {"eval/loss", "sft/nll", "sft/epoch"} <= logged
    assert unknown(logged) == []


def test_every_step_is_logged(uninterrupted):
    start, *lines = read_lines(uninterrupted / "metrics.jsonl")
    assert start["step"] == 0
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    expected = {"sft/nll", "actor/grad_norm", "actor/lr", "perf/tokens_per_s", "timing_s/step"}
    assert all(not expected - line.keys() for line in lines)
    assert lines[-1]["sft/nll"] < 0.1 < lines[0]["sft/nll"]
    assert lines[-1]["sft/epoch"] == (STEPS - 1) * 4 // 10


def test_held_out_loss_is_that_of_transformers_over_all_ranks(uninterrupted, random_model):
    lines = read_lines(uninterrupted / "metrics.jsonl")
    evaluated = {line["step"]: line["eval/loss"] for line in lines if "eval/loss" in line}
    assert list(evaluated) == [0, VALIDATION_INTERVAL, STEPS]
    for step, folder in ((0, random_model), (STEPS, uninterrupted / "model")):
        assert evaluated[step] == pytest.approx(loss_by_transformers(folder), rel=1e-4)


@torch.no_grad()
def loss_by_transformers(folder: Path) -> float:
    """Mean over all tokens that the assistant is to write, its stop token among them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nll = []
    for question, answer in HELD_OUT.items():
        messages = chat(question, answer)["messages"]
        head = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(f"{head}{answer}<|im_end|>", return_tensors="pt").input_ids
        first = len(tokenizer(head).input_ids)
        logprobs_NV = model(ids).logits[0, first - 1 : -1].log_softmax(-1)
        nll.append(-logprobs_NV.gather(1, ids[0, first:, None])[:, 0])
    return torch.cat(nll).mean().item()


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
    *told, line = resumed[0].stdout.splitlines()[:7]
    assert told[-1] == f"resumed after step {INTERVAL}"
    assert line.startswith(f"step {INTERVAL + 1}/{STEPS}")
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (uninterrupted / weights).read_bytes()
    assert records(tmp_path) == records(uninterrupted)


def test_a_model_exported_in_bfloat16_has_half_the_size(command, uninterrupted, tmp_path):
    flags = ["--policy.dtype=bfloat16", "--export.dtype=bfloat16", "--num_epochs=1"]
    ended = run_ranks([*command, tmp_path / "run", *flags], WORLD)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    assert read_lines(tmp_path / "run/metrics.jsonl")[-1]["step"] == 3  # 10 rows in steps of 4
    sizes = [
        (folder / "model/model.safetensors").stat().st_size
        for folder in (uninterrupted, tmp_path / "run")
    ]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=0.05)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", dtype="auto")
    assert model.dtype == torch.bfloat16
