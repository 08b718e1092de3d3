"""A user's mistake ends every recipe on all ranks with exit code 2 and one line that names the
value and the remedy, without a hang and with nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.recipes.case_runner import Command, run_cases
from tests.recipes.json_lines import write_lines
from tests.recipes.model_directories import CONTEXT, write_random_model
from tests.recipes.rank_processes import Ended

WORLD = 2
PROMPT = {"id": "a", "problem": "How many apples?", "answer": "3"}
CHAT = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "3"}]}
GOOD = {
    "rl": {
        "model": "model",
        "prompts": "prompts.jsonl",
        "num_prompts_per_step": 2,
        "num_steps": 1,
        "group_size": 2,
        "max_completion_tokens": 4,
        "gym.num_workers": 1,
        "checkpoint.interval": 1,
    },
    "sft": {
        "model": "model",
        "data.path": "chats.jsonl",
        "data.max_len": 100,
        "data.num_examples_per_step": 2,
        "num_steps": 1,
        "checkpoint.interval": 1,
    },
    "evaluate": {
        "model": "model",
        "data": "prompts.jsonl",
        "max_completion_tokens": 4,
        "gym.num_workers": 1,
    },
    "generate": {"model": "model", "prompts": "prompts.jsonl", "max_completion_tokens": 4},
}
"""Flags of a launch that works; paths are relative to the folder of inputs."""
PATHS = {"config", "model", "tokenizer", "prompts", "data", "data.path"}
PATHS |= {"data.validation", "eval.held_out.data", "run_dir", "output"}
OUTPUT = {"rl": "run_dir", "sft": "run_dir", "evaluate": "output", "generate": "output"}

MISTAKES = {
    # configuration
    "unknown_flag": ("rl", {"num_step": 1}, "--num_step; did you mean --num_steps?"),
    "unknown_key": ("rl", {"config": "key.toml"}, "unknown key optm; "),
    "wrong_type_flag": ("sft", {"num_steps": "ten"}, "--num_steps='ten' must be an integer"),
    "wrong_type_key": ("sft", {"config": "type.toml"}, "num_steps='4' must be an integer"),
    "not_a_choice": ("rl", {"loss": "ppo"}, "loss='ppo' must be one of espo, gspo, grpo"),
    "no_config": ("rl", {"config": "absent.toml"}, "absent.toml: No such file"),
    "greedy_rl": ("rl", {"temperature": 0}, "temperature=0.0 must be above 0"),
    "empty_groups": ("rl", {"group_size": 0}, "group_size=0 must be at least 1"),
    "no_minibatch": ("rl", {"pack.num_minibatches": 0}, "num_minibatches=0 must be at least 1"),
    "too_many_minibatches": (
        "rl",
        {"num_prompts_per_step": 3, "pack.num_minibatches": 4},
        "pack.num_minibatches=4 is more than num_prompts_per_step=3",
    ),
    "no_samples": ("evaluate", {"num_samples": 0}, "num_samples=0 must be at least 1"),
    "no_samples_at_all": ("generate", {"num_samples": 0}, "num_samples=0 must be at least 1"),
    "negative_temperature": ("generate", {"temperature": -1}, "temperature=-1.0 must be 0"),
    "top_p": ("evaluate", {"top_p": 0}, "top_p=0.0 must be above 0"),
    # files
    "no_prompts": ("rl", {"prompts": "absent.jsonl"}, "absent.jsonl: No such file"),
    "no_validation_rows": (
        "sft",
        {"data.validation": "no_rows.jsonl"},
        "no_rows.jsonl is empty; it needs",
    ),
    "group_of_nothing": (
        "sft",
        {"optim.groups.a.pattern": "gates"},
        "optim.groups.a: pattern 'gates' matches no parameter",
    ),
    "two_groups_of_one": (
        "rl",
        {"optim.groups.a.pattern": "router", "optim.groups.b.pattern": "gate"},
        "optim.groups.a and b both match layers.0.moe.router.gate.weight",
    ),
    "no_epoch": ("sft", {"num_epochs": 0}, "num_epochs=0 must be at least 1"),
    "no_chats": ("sft", {"data.path": "absent.jsonl"}, "absent.jsonl: No such file"),
    "no_data": ("evaluate", {"data": "absent.jsonl"}, "absent.jsonl: No such file"),
    "no_model": ("generate", {"model": "absent"}, "absent/tokenizer.json does not exist"),
    "no_such_spec": (
        "sft",
        {"model": "tiny", "tokenizer": "model"},
        "tiny' is neither a directory nor one of debug",
    ),
    "malformed_prompt": ("rl", {"prompts": "bad.jsonl"}, "bad.jsonl:3: not JSON"),
    "malformed_chat": ("sft", {"data.path": "bad_chats.jsonl"}, "bad_chats.jsonl:2: "),
    "another_name_for_the_answer": (
        "rl",
        {"prompts": "final_answer.jsonl"},
        "final_answer.jsonl:2: domain 'math' needs `answer`: has final_answer; rename it to answer",
    ),
    "no_answer": (
        "evaluate",
        {"data": "no_answer.jsonl"},
        "no_answer.jsonl:1: domain",
    ),
    "nothing_left": (
        "evaluate",
        {"data": "no_answer.jsonl", "drop_unjudgeable": True},
        "(2 of 2 prompts cannot be judged: nothing is left)",
    ),
    "unknown_domain": ("evaluate", {"data": "domain.jsonl"}, "domain.jsonl:1: unknown domain"),
    "same_id": ("generate", {"prompts": "same.jsonl"}, "same.jsonl:2: id 'a' was used at"),
    "too_few_prompts": (
        "rl",
        {"num_prompts_per_step": 9},
        "num_prompts_per_step=9, but there are 2 prompts",
    ),
    "uneven_step": (
        "sft",
        {"data.num_examples_per_step": 3},
        "num_examples_per_step 3 is not a multiple of the 2 ranks",
    ),
    "no_folder": ("generate", {"output": "absent/out.jsonl"}, "absent"),
    "output_is_a_file": ("evaluate", {"output": "prompts.jsonl"}, "prompts.jsonl"),
    "run_dir_is_a_file": ("rl", {"run_dir": "prompts.jsonl"}, "prompts.jsonl"),
    # rows that are no prompts
    "surrogate": (
        "rl",
        {"prompts": "surrogate.jsonl"},
        "surrogate.jsonl:3: 'problem' holds \\ud83d",
    ),
    "surrogate_id": ("generate", {"prompts": "surrogate_id.jsonl"}, "surrogate_id.jsonl:3: 'id' h"),
    "surrogate_sft": ("sft", {"data.path": "half.jsonl"}, "half.jsonl:2: 'messages' holds"),
    "huge_integer": ("evaluate", {"data": "huge.jsonl"}, "huge.jsonl:3: an integer has more than"),
    "brackets": (
        "rl",
        {"eval.held_out.data": "brackets.jsonl"},
        "brackets.jsonl:3: more than 100 nested",
    ),
    "nan_difficulty": ("rl", {"prompts": "nan.jsonl"}, "nan.jsonl:3: `difficulty` is nan"),
    "answer_in_prompt_rl": (
        "rl",
        {"prompts": "answered.jsonl"},
        "answered.jsonl:3: `messages` end",
    ),
    "answer_in_prompt": ("generate", {"prompts": "answered.jsonl"}, "would hold its own answer"),
    "role_rl": ("rl", {"prompts": "human.jsonl"}, "human.jsonl:3: prompt 'c': the chat template"),
    "role_evaluate": ("evaluate", {"data": "human.jsonl"}, "message 0, whose role is 'human'"),
    "role_generate": (
        "generate",
        {"prompts": "human.jsonl"},
        "roles that work there: system, user",
    ),
    "role_sft": (
        "sft",
        {"data.path": "human_chats.jsonl"},
        "human_chats.jsonl:2: the chat template",
    ),
    "template_error": (
        "rl",
        {"prompts": "divide.jsonl"},
        "divide.jsonl:3: prompt 'c': the chat tem",
    ),
    # what does not fit together
    **{
        f"stop_token_{recipe}": (recipe, {"model": "base"}, "in eos_token of tokenizer_config.json")
        for recipe in ("rl", "evaluate", "generate")
    },
    "stop_token_sft": ("sft", {"model": "base"}, "set eos_token in tokenizer_config.json"),
    "long_prompt_rl": (
        "rl",
        {"prompts": "long.jsonl"},
        f"'long' has 206 tokens, but the context is {CONTEXT}",
    ),
    "long_prompt_evaluate": ("evaluate", {"data": "long.jsonl"}, "'long' has 206 tokens"),
    "long_prompt_generate": ("generate", {"prompts": "long.jsonl"}, "'long' has 206 tokens"),
    "long_chat": ("sft", {"data.max_len": 4}, "tokens, more than max_len 4"),
    "vocabulary": (
        "generate",
        {"model": "small_vocabulary"},
        "the tokenizer has ids up to 297, but the model's vocabulary is 100",
    ),
    "template_on_one_rank": ("generate", {"prompts": "refused.jsonl"}, "only short ones"),
    "ep_and_experts": (
        "rl",
        {"model": "three_experts", "parallel.ep": 2},
        "parallel.ep=2 does not divide the model's 3 experts",
    ),
    "ep_and_world": ("sft", {"parallel.ep": 4}, "parallel.ep=4 does not divide the world size 2"),
    "kv_cache": (
        "rl",
        {"generator.num_blocks": 1, "generator.block_size": 4},
        "raise generator.num_blocks",
    ),
    "kv_cache_evaluate": (
        "evaluate",
        {"generator.num_blocks": 1, "generator.block_size": 4},
        "raise generator.num_blocks",
    ),
    "kv_cache_generate": (
        "generate",
        {"generator.num_blocks": 1, "generator.block_size": 4},
        "raise generator.num_blocks",
    ),
    "no_kv_cache": ("rl", {"generator.kv_cache_gb": 0}, "generator.kv_cache_gb=0.0"),
    # damaged or foreign weights
    **{
        f"nan_{recipe}": (
            recipe,
            {"model": "nan"},
            "nan/model.safetensors: model.norm.weight holds",
        )
        for recipe in ("rl", "sft", "evaluate", "generate")
    },
    "overflow": (
        "generate",
        {"model": "overflow"},
        "prompt 'a', sample 0: the logits for position",
    ),
    "tied": ("generate", {"model": "tied"}, "differs from the embedding: set tie_word_embeddings"),
    "yarn": (
        "evaluate",
        {"model": "yarn"},
        "config.json: rope_scaling asks for rope scaling 'yarn'",
    ),
    "null_in_config": (
        "sft",
        {"model": "null"},
        "decoder_sparse_step is null: it must be an integer",
    ),
    "truncated_rl": ("rl", {"model": "truncated"}, "model.safetensors is truncated or damaged"),
    "truncated_sft": ("sft", {"model": "truncated"}, "model.safetensors is truncated or damaged"),
    "other_sizes": (
        "evaluate",
        {"model": "other_config"},
        "has shape [320, 32], the model needs [300, 32]",
    ),
    "architecture": ("generate", {"model": "llama"}, "LlamaForCausalLM"),
    "resume_other_shape": (
        "sft",
        {"run_dir": "earlier", "model": "three_experts", "resume": True},
        "model: ",
    ),
    "resume_other_prompts": (
        "rl",
        {"run_dir": "earlier_rl", "prompts": "four.jsonl", "resume": True},
        "prompts.jsonl -> ",
    ),
    "into_a_run": ("evaluate", {"output": "earlier"}, "is the folder of a training run; choose"),
    "not_resumed": ("sft", {"run_dir": "earlier"}, "continue it with --resume"),
}
"""Name -> recipe, the flags in which it differs from a launch that works, part of the message."""
PER_PROCESS = 40
"""Launches that share one process a rank, which has a time limit."""
EXISTING = ("earlier", "earlier_rl", "prompts.jsonl")
"""Outputs that are there before the mistake, and must stay as they are."""


def command(recipe: str, folder: Path, name: str, changes: dict) -> Command:
    flags = {**GOOD[recipe], OUTPUT[recipe]: f"{name}.out", **changes}
    words = [
        f"--{flag}={folder / value if flag in PATHS else value}" for flag, value in flags.items()
    ]
    return (recipe, "--parallel.device=cpu", "--parallel.timeout_seconds=60", *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_model) -> Path:
    """Everything the launches read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "key.toml").write_text("[optm]\nlr = 1\n")
    (folder / "type.toml").write_text('num_steps = "4"\n')
    prompts = [PROMPT, PROMPT | {"id": "b"}]
    write_lines(folder / "prompts.jsonl", prompts)
    write_lines(folder / "four.jsonl", [PROMPT | {"id": name} for name in "abcd"])
    write_lines(folder / "chats.jsonl", [CHAT, CHAT])
    (folder / "no_rows.jsonl").write_text("")
    write_lines(folder / "long.jsonl", [*prompts, PROMPT | {"id": "long", "problem": "0" * 198}])
    write_lines(
        folder / "final_answer.jsonl",
        [PROMPT, {"id": 2, "problem": "?", "final_answer": 5}],
    )
    write_lines(folder / "no_answer.jsonl", [PROMPT | {"answer": None}, {"id": 2, "problem": "y"}])
    write_lines(folder / "same.jsonl", [PROMPT, PROMPT])
    write_lines(folder / "domain.jsonl", [PROMPT | {"domain": "astrology"}])
    good = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (folder / "bad.jsonl").write_text(good + '{"id": "c", "problem": \n')
    (folder / "bad_chats.jsonl").write_text(json.dumps(CHAT) + '\n{"messages": "hello"}\n')
    _write_odd_rows(folder, prompts)
    two = [PROMPT, PROMPT | {"id": "b", "problem": "REFUSE"}]
    write_lines(folder / "refused.jsonl", two)
    shutil.copytree(random_model, folder / "model")
    _refuse_some(folder / "model" / "chat_template.jinja")
    write_random_model(folder / "three_experts", num_experts=3)
    write_random_model(folder / "small_vocabulary", vocab_size=100)
    copies = ("truncated", "other_config", "llama", "base", "nan", "tied", "yarn", "null")
    for name in copies:
        shutil.copytree(random_model, folder / name)
    _end_turns_otherwise(folder / "base")
    shutil.copytree(random_model, folder / "overflow")
    _set_values(folder / "overflow/model.safetensors", "lm_head.weight", 3e38)
    _set_values(folder / "nan/model.safetensors", "model.norm.weight", float("nan"))
    _change_config(folder / "tied", tie_word_embeddings=True)
    _change_config(folder / "yarn", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    _change_config(folder / "null", decoder_sparse_step=None)
    weights = folder / "truncated/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    _change_config(folder / "other_config", vocab_size=300)
    _change_config(folder / "llama", architectures=["LlamaForCausalLM"])
    return folder


def _write_odd_rows(folder: Path, prompts: list[dict]) -> None:
    """Files of two prompts and a third that is none."""
    human = {"messages": [{"role": "human", "content": "How?"}]}
    good = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    rows = {
        "surrogate": '{"id": "c", "problem": "\\ud83d"}',
        "surrogate_id": '{"id": "\\ud83d", "problem": "x"}',
        "huge": f'{{"id": "c", "problem": "x", "answer": {"1" * 5000}}}',
        "brackets": f'{{"id": "c", "problem": {"[" * 100_000}',
        "nan": '{"id": "c", "problem": "x", "difficulty": NaN}',
        "answered": json.dumps({"id": "c", **CHAT}),
        "human": json.dumps({"id": "c", "answer": "3", **human}),
        "divide": '{"id": "c", "problem": "DIVIDE", "answer": "3"}',
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(f"{good}{row}\n")
    answered = {"messages": [*human["messages"], CHAT["messages"][1]]}
    write_lines(folder / "human_chats.jsonl", [CHAT, answered])
    half = {"messages": [{"role": "user", "content": "\ud83d"}, CHAT["messages"][1]]}
    write_lines(folder / "half.jsonl", [CHAT, half])


def _refuse_some(template: Path) -> None:
    """Some texts, and every message of a human."""
    failures = {"REFUSE": "{{ raise_exception('only short ones') }}", "DIVIDE": "{{ 1 // 0 }}"}
    conditions = [
        f"{{% if messages[0].content == '{text}' %}}{failure}{{% endif %}}"
        for text, failure in failures.items()
    ]
    loop = template.read_text().replace(
        "for message in messages", "for message in messages if message.role != 'human'"
    )
    template.write_text("".join(conditions) + loop)


def _end_turns_otherwise(directory: Path) -> None:
    """Than with the stop token, as published base models do."""
    for name, value in {"tokenizer_config": "<|im_start|>", "generation_config": 0}.items():
        path = directory / f"{name}.json"
        key = "eos_token" if isinstance(value, str) else "eos_token_id"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def _set_values(weights: Path, name: str, value: float) -> None:
    tensors = load_file(weights)
    tensors[name].fill_(value)
    save_file(tensors, weights)


def _change_config(directory: Path, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, list[Ended]]:
    launches = {
        "earlier": command("sft", folder, "", {"run_dir": "earlier"}),
        "earlier_rl": command("rl", folder, "", {"run_dir": "earlier_rl"}),
    }
    launches |= {
        name: command(recipe, folder, name, changes)
        for name, (recipe, changes, _) in MISTAKES.items()
    }
    items = list(launches.items())
    parts = [
        dict(items[first : first + PER_PROCESS]) for first in range(0, len(items), PER_PROCESS)
    ]
    found: dict[str, list[Ended]] = {}
    for number, part in enumerate(parts):
        found |= run_cases(part, folder / f"outputs_{number}", WORLD)
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_on_every_rank(name, ended, folder):
    _, _, message = MISTAKES[name]
    first, second = ended[name]
    assert (first.code, second.code) == (2, 2), first.stderr + second.stderr
    assert message in first.stderr
    assert first.stderr.startswith("error: ")
    assert first.stderr.count("\n") == 1
    assert second.stderr == second.stdout == ""
    assert not (folder / f"{name}.out").exists()


def test_runs_that_were_there_stay_as_they_were(ended, folder):
    for name in ("earlier", "earlier_rl"):
        assert [rank.code for rank in ended[name]] == [0, 0], ended[name][0].stderr
        assert [p.name for p in (folder / name / "checkpoints").iterdir()] == ["step_000001"]
        assert (folder / name / "model/model.safetensors").exists()
    assert len((folder / "prompts.jsonl").read_text().splitlines()) == 2
