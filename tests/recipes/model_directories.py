"""Model directories as strangers make them: weights by transformers, tokenizer by tokenizers."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

END = "<|im_end|>"
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
CORPUS = ("How many apples are left? She eats 3 of 7 apples.", "user\nassistant\n#### 3\n#### 7")
CONTEXT = 128


def write_tokenizer(directory: Path, corpus: tuple[str, ...] = CORPUS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def write_random_model(directory: Path, **sizes: int) -> None:
    """Random weights; `sizes` are those in which its config differs."""
    tokenizer = write_tokenizer(directory)
    _random_model(tokenizer, **sizes).save_pretrained(directory)


def write_guessing_model(directory: Path) -> None:
    """Answers "#### 3" or "#### 7" to anything, about as often, so that groups are mixed."""
    tokenizer = write_tokenizer(directory)
    model = _random_model(tokenizer).train()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How many apples?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    rows_BT = torch.tensor([tokenizer(f"{prompt}#### {digit}{END}").input_ids for digit in (3, 7)])
    labels_BT = rows_BT.clone()
    labels_BT[:, : len(tokenizer(prompt).input_ids)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(rows_BT, labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)


def _random_model(tokenizer: PreTrainedTokenizerFast, **sizes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_experts": 4} | sizes
    config = Qwen3MoeConfig(
        **sizes,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=CONTEXT,
        # Large, so that the most likely token wins by more than rounding.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return AutoModelForCausalLM.from_config(config)
