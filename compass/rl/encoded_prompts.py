"""Prompts as token ids, each rendered and encoded once in a run."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from compass.errors import UserError
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, SamplingParams

_PER_BATCH = 1000
"""Texts encoded at once: enough to keep all cores busy, and not all of them in memory twice."""


class EncodedPrompts:
    """Token ids of prompts, made when they are first asked for, or beforehand by `add`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[tuple[str, str], array[int]] = {}
        """By `_key`, four bytes a token."""
        self._thinking_open: dict[tuple[str, str], bool] = {}

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Encode `prompts`.

        Raises:
            UserError: `FILE:LINE` of one that the chat template refuses, or of which it would leave
                a message out.
        """
        for first in range(0, len(prompts), _PER_BATCH):
            batch = prompts[first : first + _PER_BATCH]
            for raw in (False, True):
                self._add_alike(
                    [p for p in batch if p.raw is raw and _key(p) not in self._ids], raw
                )

    def of(self, prompt: Prompt) -> list[int]:
        """Ids to generate from. Raises as `add` does."""
        if _key(prompt) not in self._ids:
            self.add([prompt])
        return self._ids[_key(prompt)].tolist()

    def opens_thinking(self, prompt: Prompt) -> bool:
        """`Tokenizer.opens_thinking`, found out once."""
        if _key(prompt) not in self._thinking_open:
            self._thinking_open[_key(prompt)] = self.tokenizer.opens_thinking(prompt)
        return self._thinking_open[_key(prompt)]

    def _add_alike(self, prompts: Sequence[Prompt], raw: bool) -> None:
        texts = [self._text(prompt) for prompt in prompts]
        encoded = self.tokenizer.encode_all(texts, add_special_tokens=raw)
        for prompt, ids in zip(prompts, encoded, strict=True):
            self._ids[_key(prompt)] = array("i", ids)

    def _text(self, prompt: Prompt) -> str:
        try:
            return self.tokenizer.prompt_text(prompt)
        except UserError as error:
            raise UserError(f"{prompt.name}: {error}") from None


def check_prompts(
    generator: Generator, tokenizer: Tokenizer, prompts: Sequence[Prompt], sampling: SamplingParams
) -> EncodedPrompts:
    """Encode all prompts, and refuse those that could not be served, before anything is spent on
    the others.

    Raises:
        UserError: `FILE:LINE` of a prompt that the chat template refuses or would change, or that
            is longer than the context; a KV cache without room for one sequence; sampling
            parameters that make no sense.
    """
    encoded = EncodedPrompts(tokenizer)
    encoded.add(prompts)
    for prompt in prompts:
        request = Request(
            prompt_id=prompt.id,
            prompt_token_ids=encoded.of(prompt),
            num_samples=1,
            sampling=sampling,
        )
        try:
            generator.check_request(request)
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}" if prompt.where else str(error)) from None
    return encoded


def _key(prompt: Prompt) -> tuple[str, str]:
    """Two files may use the same id, and so may a program for two texts."""
    return prompt.where or repr((prompt.messages, prompt.tools)), prompt.id
