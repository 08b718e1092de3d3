"""Prompts are encoded once each, checked in one pass, and named by the line they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from compass.distributed import Topology
from compass.errors import UserError
from compass.generate import generator as generator_module
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.rl.encoded_prompts import EncodedPrompts, check_prompts
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, SamplingParams
from tests.tiny_batch import SPEC

SAMPLING = SamplingParams(max_completion_tokens=4)


class CountingTokenizer:
    """Counts what is rendered and what is encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.rendered: list[str] = []
        self.encoded: list[str] = []

    def prompt_text(self, prompt: Prompt) -> str:
        self.rendered.append(prompt.id)
        return self._tokenizer.prompt_text(prompt)

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        self.encoded += texts
        return self._tokenizer.encode_all(texts, add_special_tokens=add_special_tokens)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_byte_tokenizer(tmp_path)
    return Tokenizer.from_dir(tmp_path)


def prompt_of(text: str, *, name: str = "", raw: bool = False, where: str = "") -> Prompt:
    messages = ({"role": "user", "content": text},)
    return Prompt(id=name or text, messages=messages, raw=raw, where=where)


def test_ids_are_those_of_encoding_one_prompt_at_a_time(tokenizer: Tokenizer) -> None:
    prompts = [prompt_of(f"{n} + {n}?", raw=n % 3 == 0) for n in range(2500)]
    encoded = EncodedPrompts(tokenizer)
    encoded.add(prompts)
    for prompt in prompts[::50]:
        assert encoded.of(prompt) == tokenizer.encode_prompt(prompt)


@pytest.mark.parametrize("where", ["{}.jsonl:1", ""], ids=["from files", "from a program"])
def test_two_prompts_may_use_the_same_id(tokenizer: Tokenizer, where: str) -> None:
    one, other = (prompt_of(name, name="a", where=where.format(name)) for name in ("one", "other"))
    encoded = EncodedPrompts(tokenizer)
    encoded.add([one, other])
    assert "one" in tokenizer.decode(encoded.of(one))
    assert "other" in tokenizer.decode(encoded.of(other))


def test_a_prompt_is_rendered_and_encoded_once_however_often_it_is_asked_for(
    tokenizer: Tokenizer,
) -> None:
    counting = CountingTokenizer(tokenizer)
    encoded = EncodedPrompts(counting)  # type: ignore[arg-type]
    prompts = [prompt_of(str(n)) for n in range(2500)]
    encoded.add(prompts)
    for _ in range(3):
        for prompt in prompts:
            encoded.of(prompt)
    later = prompt_of("later")
    encoded.of(later)
    encoded.of(later)
    assert counting.rendered == [prompt.id for prompt in [*prompts, later]]
    assert len(counting.encoded) == len(counting.rendered)


def make_generator(topology: Topology) -> Generator:
    spec = replace(SPEC, vocab_size=320)
    policy = build_policy(spec, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
    return Generator(policy, GeneratorConfig(max_num_seqs=2, num_blocks=40), topology)


def test_checking_takes_one_encoding_for_each_prompt_and_no_cache_of_its_own(
    alone: Topology, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make_generator(alone)

    def refuse(*_: object) -> None:
        raise AssertionError("checking a prompt takes no list of the cache's blocks")

    monkeypatch.setattr(generator_module, "BlockManager", refuse)
    counting = CountingTokenizer(tokenizer)
    prompts = [prompt_of(str(n)) for n in range(300)]
    check_prompts(generator, counting, prompts, SAMPLING)  # type: ignore[arg-type]
    assert len(counting.encoded) == len(counting.rendered) == len(prompts)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (prompt_of("x" * 5000, name="long", where="p.jsonl:7"), r"^p\.jsonl:7: prompt 'long' has"),
        (prompt_of("x" * 5000, name="long"), r"^prompt 'long' has"),
        (
            Prompt(
                id="odd",
                messages=({"role": "user", "content": "x"}, {"role": "note", "content": "y"}),
                where="p.jsonl:9",
            ),
            r"^p\.jsonl:9: prompt 'odd': .* leaves out message 1, whose role is 'note'; roles that",
        ),
        (
            prompt_of("STOP", name="no", where="p.jsonl:8"),
            r"^p\.jsonl:8: prompt 'no': the chat template of .* failed: ZeroDivisionError",
        ),
    ],
)
def test_a_prompt_that_cannot_be_served_is_named_by_its_line(
    alone: Topology, tmp_path: Path, bad: Prompt, complaint: str
) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'STOP' %}{{ 1 // 0 }}{% endif %}"
        "{% if m.role != 'note' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer.from_dir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        check_prompts(make_generator(alone), tokenizer, [prompt_of("fine"), bad], SAMPLING)
