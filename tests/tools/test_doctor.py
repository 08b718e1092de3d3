"""tools/doctor.py, run as a command: which word asks what."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from examinations import check

from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.domains.chain_data import ChainDataConfig, eval_prompts
from compass.models import load
from compass.models.policy import Policy
from compass.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/doctor.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_an_unknown_word_is_refused_in_one_line():
    done = doctor("plans")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the doctor has no 'plans'; ask one of check, plan, data\n"


def test_plan_prints_every_phase_and_takes_the_recipes_flags():
    done = doctor(
        *("plan", "--config", "configs/rl/debug.toml", "--model", "debug", "--ranks", "2"),
        *("--device_memory_gb", "3", "--generator.kv_cache_gb", "0.3", "--longest_prompt", "32"),
        *("--pack.max_tokens_per_microbatch", "256"),
    )
    assert done.returncode == 2  # 3 GB are what the rest takes alone
    for phase in ("load", "rollout", "old log-probabilities", "update", "checkpoint, export"):
        assert phase in done.stdout
    assert "KV cache 0.3 GB" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the ")


def test_data_names_the_line_of_a_message_that_the_template_leaves_out(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    human = {"id": "b", "messages": [{"role": "human", "content": "2+2?"}], "answer": "4"}
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "problem": "1+1?"}\n' + json.dumps(human) + "\n")
    done = doctor("data", str(file), "--tokenizer", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}:2: prompt 'b': the chat template of ")
    assert "whose role is 'human'; roles that work there: user\n" in done.stderr


def test_data_shows_columns_counts_lengths_and_the_first_prompt_as_it_is_fed(tmp_path):
    write_byte_tokenizer(tmp_path)
    rows = [
        {"id": "a", "problem": "1+1=?", "answer": "2", "source": "made up"},
        {"id": "b", "problem": "12+1=?", "domain": "chain"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = doctor("data", str(file), "--tokenizer", str(tmp_path), "--raw")
    assert done.returncode == 0, done.stderr
    for column, count, read_as in [
        ("problem", 2, "the user's message"),
        ("answer", 1, "what the verifier compares with"),
        ("source", 1, "kept for the verifier"),
    ]:
        line = next(line for line in done.stdout.splitlines() if f" {column} " in line)
        assert f" {count} " in line
        assert read_as in line
    assert "2 prompts: 1 math, 1 chain; 1 without an answer" in done.stdout
    assert "prompt lengths in tokens: 5 to 6, median 6, 11 in all" in done.stdout
    assert done.stdout.endswith("the first prompt as the model will see it (a):\n1+1=?\n")


def test_data_refuses_what_a_recipe_would_refuse(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a"}\n')
    done = doctor("data", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}:1: ")


@pytest.mark.parametrize("words", [(), ("check",)])
def test_check_is_what_a_bare_flag_asks(words):
    done = doctor(*words, "--model", "neither")
    assert done.returncode == 2
    assert "neither" in done.stderr


def test_one_policy_is_alive_at_a_time(alone, tmp_path, monkeypatch):
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_dir(tmp_path)
    cfg = check.Config(num_prompts=1, group_size=1, max_completion_tokens=2)
    prompts = eval_prompts(ChainDataConfig(), 0)[:1]
    opened: list[weakref.ref[Policy]] = []

    def open_policy(*args, **kwargs):
        assert not any(policy() for policy in opened)
        policy = load.open_policy(*args, **kwargs)
        opened.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(check, "open_policy", open_policy)
    gc.disable()
    try:
        for dtype in ("float32", "bfloat16"):
            check.measure(cfg, dtype, ["direct"], tokenizer, prompts, alone)
    finally:
        gc.enable()
    assert len(opened) == 2
