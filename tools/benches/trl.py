"""The peer of `bench step`: TRL's GRPOTrainer on an imposed batch, one RL step after another.

Nothing of TRL is replaced. A step is what happens between two of the trainer's own callbacks,
`on_step_begin` and `on_step_end`: generation, rewards, forward, backward, clipping and AdamW. Its
data loader and its log are outside. Lengths are imposed by a logits processor that forbids the end
of a completion before its length and allows nothing else at it.

Shape legend: B completions of a batch, N tokens of a prompt, C longest completion, R tokens of all
completions end to end, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl
from benches.batch import MOST_TOKENS, PROMPT_TOKENS, Batch, Seconds
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

EOS, PAD = 0, 1
"""Token ids with a meaning for the peer; ours are sampled like any other."""


@dataclass(frozen=True, kw_only=True)
class PeerStep:
    """One step of the peer. Built by `TrlPeer`."""

    total: Seconds
    parts: dict[str, float]
    """CPU seconds of `generate`, `forward` and `backward`."""
    num_tokens: int
    """Completion tokens it trained on."""


@dataclass(frozen=True, kw_only=True)
class PeerUpdate:
    """What the peer makes of given completions. Built by `TrlPeer.examine`."""

    logprobs_R: Tensor
    loss: float
    grad_norm: float


class ImposedLengths(transformers.LogitsProcessor):
    """Each row of a batch ends at its own length: `lengths_B` tokens, the end included."""

    def __init__(self, lengths_B: Tensor, num_prompt_tokens: int) -> None:
        self._last_B = lengths_B + num_prompt_tokens - 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits in, logits out, in place; [B, tokens so far] and [B, V]."""
        ends_B = self._last_B <= input_ids.shape[1]
        scores[:, EOS] = -torch.inf
        scores[ends_B] = -torch.inf
        scores[ends_B, EOS] = 0.0
        return scores


class TrlPeer(transformers.TrainerCallback):
    """Trains `model` on `batch`; its caller has the word before the first step and after each."""

    def __init__(
        self,
        model: Any,
        batch: Batch,
        folder: Path,
        *,
        learning_rate: float,
        per_device: int,
        num_steps: int,
        before_first: Callable[[TrlPeer], None],
        after_each: Callable[[], None],
    ) -> None:
        """`per_device`: completions of one forward and backward pass; divides the batch."""
        self.steps: list[PeerStep] = []
        self._batch = batch
        self._before_first = before_first
        self._after_each = after_each
        self._parts: dict[str, float] = {}
        self._started = Seconds.now()
        imposed = ImposedLengths(batch.lengths_PG.flatten(), PROMPT_TOKENS)
        model.generate = self._timed(
            "generate", partial(model.generate, logits_processor=[imposed])
        )
        self.trainer = grpo_trainer(
            model,
            batch,
            folder,
            learning_rate=learning_rate,
            per_device=per_device,
            num_steps=num_steps,
            callback=self,
        )
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.trainer.compute_loss = self._timed("forward", self.trainer.compute_loss)
        accelerator = self.trainer.accelerator
        accelerator.backward = self._timed("backward", accelerator.backward)

    def train(self) -> None:
        """Take all steps."""
        self.trainer.train()

    def examine(
        self, completions: Sequence[Sequence[int]], advantages: Sequence[float]
    ) -> PeerUpdate:
        """Its log-probabilities, loss and gradient for completions that it did not write; they are
        in the order of the batch. Leaves no gradient behind."""
        trainer, model = self.trainer, self.trainer.model
        repeats = self._batch.lengths_PG.shape[1]
        prompt_ids_BN = self._batch.prompts_PN.repeat_interleave(repeats, dim=0)
        completion_ids_BC, mask_BC = (
            pad_sequence(rows, batch_first=True, padding_value=padding)
            for rows, padding in (
                ([torch.tensor(ids) for ids in completions], PAD),
                ([torch.ones(len(ids), dtype=torch.int64) for ids in completions], 0),
            )
        )
        model.train()
        prompt_mask_BN = torch.ones_like(prompt_ids_BN)
        loss = trainer.compute_loss(
            model,
            {
                "prompt_ids": prompt_ids_BN,
                "prompt_mask": prompt_mask_BN,
                "completion_ids": completion_ids_BC,
                "completion_mask": mask_BC,
                "advantages": torch.tensor(advantages),
                "num_items_in_batch": mask_BC.sum(),
            },
        )
        loss.backward()
        grad_norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
        model.zero_grad()
        with torch.no_grad():
            logprobs_BC, _, _ = trainer._get_per_token_logps_and_entropies(
                model,
                torch.cat([prompt_ids_BN, completion_ids_BC], dim=1),
                torch.cat([prompt_mask_BN, mask_BC], dim=1),
                completion_ids_BC.shape[1],
            )
        return PeerUpdate(
            logprobs_R=logprobs_BC[mask_BC.bool()], loss=loss.item(), grad_norm=grad_norm.item()
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if not self.steps:
            self._before_first(self)
        self._parts = {}
        self._started = Seconds.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and let the other side have its turn."""
        total = Seconds.now().since(self._started)
        mean = self.trainer._metrics["train"]["completions/mean_length"][-1]
        num_tokens = round(mean * self._batch.lengths_PG.numel())
        self.steps.append(PeerStep(total=total, parts=self._parts, num_tokens=num_tokens))
        self._after_each()

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = Seconds.now()
            result = function(*args, **kwargs)
            spent = Seconds.now().since(started).cpu
            self._parts[name] = self._parts.get(name, 0.0) + spent
            return result

        return timed


def grpo_trainer(
    model: Any,
    batch: Batch,
    folder: Path,
    *,
    learning_rate: float,
    per_device: int,
    num_steps: int,
    callback: transformers.TrainerCallback,
) -> Any:
    """TRL's trainer: DAPO's loss, no reference model, no auxiliary loss, one optimizer step per
    batch, float32, no activation checkpointing, no logging; all else as it comes."""
    size, group_size = batch.lengths_PG.numel(), batch.lengths_PG.shape[1]
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=every_other,
        args=trl.GRPOConfig(
            output_dir=str(folder),
            max_steps=num_steps,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=size // per_device,
            num_generations=group_size,
            max_completion_length=MOST_TOKENS,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            loss_type="dapo",
            epsilon=0.2,
            epsilon_high=0.28,
            beta=0.0,
            router_aux_loss_coef=0.0,
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": as_text(prompt)} for prompt in batch.prompts_PN.tolist()]
        ),
        processing_class=numbers_tokenizer(model.config.vocab_size),
        callbacks=[callback],
    )


def every_other(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward that leaves no group flat: 1 and 0 in turn."""
    return [float(i % 2) for i in range(len(completions))]


def as_text(token_ids: Sequence[int]) -> str:
    """What `numbers_tokenizer` reads as these tokens."""
    return " ".join(map(_word, token_ids))


def numbers_tokenizer(vocab_size: int) -> Any:
    """A tokenizer whose words are the numbers of their ids."""
    words = tokenizers.models.WordLevel(
        {_word(i): i for i in range(vocab_size)}, unk_token=_word(PAD)
    )
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_word(EOS), pad_token=_word(PAD)
    )


def _word(token_id: int) -> str:
    # The tokenizer would find a special token that is a plain number inside longer numbers too.
    return {EOS: "<end>", PAD: "<pad>"}.get(token_id, str(token_id))
