"""`recipes/generate.py` and `recipes/evaluate.py`: greedy output is transformers', files keep the
order of the prompts, and neither depends on the number of ranks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass.gym.domains.math import judge
from compass.types import Prompt
from tests.recipes.case_runner import run_cases
from tests.recipes.json_lines import read_lines, write_lines
from tests.recipes.model_directories import CHAT_TEMPLATE
from tests.recipes.rank_processes import ROOT

PROMPTS = [
    {"id": f"p{i}", "problem": "She eats " * i + "3 apples. How many are left?", "answer": answer}
    for i, answer in enumerate(["3", "7.0", "\\frac{14}{2}", "1", "3"])
]
MAX_TOKENS = 12
SAMPLES = 4
SAMPLED = ["--num_samples", SAMPLES, "--temperature", 1.3, "--top_p", 0.95, "--seed", 5]
GREEDY = ["--temperature", 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inference")
    write_lines(folder / "many.jsonl", PROMPTS)
    write_lines(folder / "one.jsonl", PROMPTS[:1])
    return folder


@pytest.fixture(scope="module")
def models(random_model, guessing_model) -> dict[str, Path]:
    return {"random": random_model, "guessing": guessing_model}


@pytest.fixture(scope="module")
def outputs(folder, models) -> Path:
    """What two ranks with expert parallelism wrote, and under `alone-*` what one process did."""
    limits = ["--max_completion_tokens", MAX_TOKENS, "--parallel.device", "cpu"]
    generate = ["--prompts", folder / "many.jsonl", *limits]
    evaluate = ["--data", folder / "many.jsonl", folder / "one.jsonl", *limits]
    evaluate += ["--gym.num_workers", 1, *SAMPLED]
    launches = {
        f"{name}-{form}": ("generate", "--model", model, *generate, *GREEDY, *flags)
        for (name, model), (form, flags) in product(
            models.items(), {"chat": [], "raw": ["--raw"]}.items()
        )
    }
    launches["sampled"] = ("generate", "--model", models["random"], *generate, *SAMPLED)
    launches["evaluation"] = ("evaluate", "--model", models["guessing"], *evaluate)
    ended = run_cases(
        {
            name: (*map(str, launch), "--output", str(folder / name), "--parallel.ep", "2")
            for name, launch in launches.items()
        },
        folder / "processes",
        world_size=2,
    )
    for name, ranks in ended.items():
        assert [rank.code for rank in ranks] == [0, 0], f"{name}: {ranks[0].stderr}"
    for name in ("sampled", "evaluation"):
        recipe, *flags = map(str, launches[name])
        one = str(folder / "one.jsonl")  # the same with a flag for each file
        flags = [word for f in flags for word in (("--data", f) if f == one else (f,))]
        command = [sys.executable, f"recipes/{recipe}.py", *flags, "--output"]
        subprocess.run([*command, str(folder / f"alone-{name}")], cwd=ROOT, check=True, timeout=120)
    return folder


def greedy_by_transformers(directory: Path, *, raw: bool) -> list[dict]:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    expected = []
    for prompt in PROMPTS:
        text = prompt["problem"]
        if not raw:
            chat = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(text, return_tensors="pt").input_ids
        written = model.generate(
            prompt_ids,
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        token_ids = written.sequences[0, prompt_ids.shape[1] :]
        logits_NV = torch.cat(written.logits)
        stopped = token_ids[-1] == tokenizer.eos_token_id
        expected.append(
            {
                "id": prompt["id"],
                "sample": 0,
                "text": tokenizer.decode(token_ids[:-1] if stopped else token_ids),
                "token_ids": token_ids.tolist(),
                "logprobs": logits_NV.log_softmax(1).gather(1, token_ids[:, None])[:, 0].tolist(),
                "finish_reason": "stop" if stopped else "length",
            }
        )
    return expected


@pytest.mark.parametrize("form", ["chat", "raw"])
@pytest.mark.parametrize(("name", "ending"), [("random", "length"), ("guessing", "stop")])
def test_greedy_lines_are_those_of_transformers(name, ending, form, outputs, models):
    expected = greedy_by_transformers(models[name], raw=form == "raw")
    lines = read_lines(outputs / f"{name}-{form}")
    assert [list(line) for line in lines] == [list(line) for line in expected]
    for line, reference in zip(lines, expected, strict=True):
        assert line.pop("logprobs") == pytest.approx(reference.pop("logprobs"), abs=1e-4)
        assert line == reference
    assert ending in {line["finish_reason"] for line in lines}


def test_every_prompt_has_its_samples_in_the_order_of_the_file(outputs):
    lines = read_lines(outputs / "sampled")
    expected = [(prompt["id"], sample) for prompt in PROMPTS for sample in range(SAMPLES)]
    assert [(line["id"], line["sample"]) for line in lines] == expected
    for line in lines:
        assert len(line["token_ids"]) == len(line["logprobs"]) <= MAX_TOKENS
    assert len({line["text"] for line in lines}) > len(PROMPTS)


def test_one_process_samples_what_two_ranks_sample(outputs):
    lines, alone = read_lines(outputs / "sampled"), read_lines(outputs / "alone-sampled")
    for line, other in zip(lines, alone, strict=True):
        assert line.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-4)
    assert lines == alone


def test_evaluation_judges_every_sample_and_sums_up_each_file(outputs):
    summary = json.loads((outputs / "evaluation/summary.json").read_text())
    assert list(summary) == ["many", "one"]
    samples = read_lines(outputs / "evaluation/many.samples.jsonl")
    expected = [(prompt["id"], sample) for prompt in PROMPTS for sample in range(SAMPLES)]
    assert [(s["id"], s["sample"]) for s in samples] == expected
    right = {"p0": "3", "p1": "7", "p2": "7", "p3": "1", "p4": "3"}
    for s in samples:
        assert s["verdict"] == float(s["text"] == f"#### {right[s['id']]}"), s
        assert s["answer"] == s["text"].removeprefix("#### ") or s["reason"], s
    verdicts = [s["verdict"] for s in samples]
    assert 0 < sum(verdicts) < len(verdicts)
    by_prompt = [verdicts[i : i + SAMPLES] for i in range(0, len(verdicts), SAMPLES)]
    means = [sum(v) / SAMPLES for v in by_prompt]
    mean = sum(means) / len(means)
    spread = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    many = summary["many"]
    assert many["accuracy"] == pytest.approx(mean)
    assert many["accuracy_stderr"] == pytest.approx(math.sqrt(spread / len(means)))
    passed = sum(max(v) for v in by_prompt) / len(by_prompt)
    assert many[f"pass@{SAMPLES}"] == pytest.approx(passed)
    assert many["pass@1"] == pytest.approx(mean) == pytest.approx(many["majority@1"])
    assert f"pass@{SAMPLES + 1}" not in many
    assert (many["num_prompts"], many["num_samples"]) == (5, 20)
    assert many["mean_tokens"] == pytest.approx(sum(s["num_tokens"] for s in samples) / 20)
    assert summary["one"]["num_samples"] == SAMPLES
    assert (outputs / "evaluation/config.toml").exists()


def test_one_process_evaluates_as_two_ranks_do(outputs):
    for name in ("summary.json", "many.samples.jsonl", "one.samples.jsonl"):
        alone = (outputs / "alone-evaluation" / name).read_text()
        assert (outputs / "evaluation" / name).read_text() == alone


def test_thinking_that_the_template_opens_must_be_closed_to_be_judged(folder, guessing_model):
    model = folder / "thinker"
    shutil.copytree(guessing_model, model)
    # Before the turn's head, so that the model still guesses: what it saw last is what it learned.
    template = CHAT_TEMPLATE.replace("<|im_start|>assistant", "<think><|im_start|>assistant")
    (model / "chat_template.jinja").write_text(template)
    command = ["recipes/evaluate.py", "--model", model, "--data", folder / "many.jsonl", *SAMPLED]
    command += ["--output", folder / "thought", "--max_completion_tokens", MAX_TOKENS]
    command += ["--parallel.device", "cpu", "--gym.num_workers", 1]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, timeout=120)
    samples = read_lines(folder / "thought/many.samples.jsonl")
    answers = {prompt["id"]: prompt["answer"] for prompt in PROMPTS}
    assert any(
        judge(Prompt(id="p", messages=(), answer=answers[s["id"]]), s["text"], True).verdict
        for s in samples
    )
    for sample in samples:
        assert "</think>" not in sample["text"]
        assert sample["verdict"] == 0.0
        assert "never closed" in sample["reason"]
