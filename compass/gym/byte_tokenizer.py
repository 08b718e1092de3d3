"""A tokenizer that needs no training: one token a byte, plus the chat and thinking marks.

The demo ships nothing binary: this directory is written beside its data and loads like any other
Hugging Face tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CONTROL = (END_OF_TEXT, START, END)
_VISIBLE = ("<think>", "</think>", "<answer>", "</answer>", "<tool_call>")
"""Part of what the model says: kept when special tokens are skipped."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
)
"""Short on purpose: full ChatML would be a third of every row of the demo. The role is told by
the opening mark alone, and a generation prompt adds nothing."""


def byte_tokenizer() -> Tokenizer:
    """264 tokens: the 256 bytes, then 8 marks of one token each. Lossless on any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in _CONTROL])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in _VISIBLE])
    return tokenizer


def write_byte_tokenizer(directory: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; makes the directory if needed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
