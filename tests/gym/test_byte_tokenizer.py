"""The demo's tokenizer loses nothing and its template trains on what it generates from."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from compass.gym.byte_tokenizer import byte_tokenizer, write_byte_tokenizer
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt

TOKENIZER = byte_tokenizer()
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*MARKS, "5+3=8", "\n", " ", "ฉ"])).map("".join))
def test_decode_undoes_encode(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_marks_are_one_token_and_bytes_one_each() -> None:
    tokenizer = TOKENIZER
    assert tokenizer.get_vocab_size() == 264
    for mark in MARKS:
        assert len(tokenizer.encode(mark).ids) == 1
    assert len(tokenizer.encode("12+3=ฉ").ids) == 5 + len("ฉ".encode())
    thought = tokenizer.encode("<think>1</think>1<|im_end|>").ids
    assert tokenizer.decode(thought, skip_special_tokens=True) == "<think>1</think>1"


def test_written_directory_loads_with_its_short_template(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_dir(tmp_path / "tokenizer")
    user = {"role": "user", "content": "5+3="}
    assistant = {"role": "assistant", "content": "<think>5+3=8</think>8"}
    prompt = Prompt(id="p", messages=(user,))
    assert tokenizer.decode(tokenizer.encode_prompt(prompt)) == "<|im_start|>5+3=<|im_end|>\n"
    ids, loss_mask = tokenizer.encode_chat([user, assistant])
    assert tokenizer.decode(ids) == ("<|im_start|>5+3=<|im_end|>\n<think>5+3=8</think>8<|im_end|>")
    learnt = [token for token, learn in zip(ids, loss_mask, strict=True) if learn]
    assert tokenizer.decode(learnt) == "<think>5+3=8</think>8<|im_end|>"
    assert tokenizer.stop_token_ids == (tokenizer.eos_token_id,)
    assert learnt[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
