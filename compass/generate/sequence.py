"""What the generator is asked for, and the live state of each completion being written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass

from compass.types import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how many completions of it to write. Built by the generator's caller."""

    prompt_id: str
    prompt_token_ids: TokenIds[int]
    num_samples: int
    sampling: SamplingParams
    first_sample: int = 0
    """Index of the first sample. Sampling noise depends on the index, so a group of samples
    0..7 that a later request extends by 8..15 is the same group as one of 0..15."""
    priority: int = 0
    """Lower is admitted first; equal priorities keep the order of the requests."""


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Where the noise of one completion starts: see `compass.generate.sampling.uniforms`."""

    value: int

    @staticmethod
    def of(seed: int, prompt_id: str, sample: int) -> SampleKey:
        """Signed 64-bit key of (seed, prompt id, sample), the same on every machine."""
        text = f"{seed}/{sample}/{prompt_id}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return SampleKey(int.from_bytes(digest, "little", signed=True))


class Group:
    """The samples of one prompt, whichever requests they come from: they share the blocks of their
    prompt while they live."""

    def __init__(self, prompt_token_ids: tuple[int, ...]) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.num_alive = 0
        """Members that have not been released."""
        self.running: list[Sequence] = []
        """Members that hold blocks, those that pause included."""
        self.followers: list[Sequence] = []
        """Members admitted without blocks: they fork from the leader as soon as it has
        computed the prompt."""

    @property
    def leader(self) -> Sequence | None:
        """The member that is computing the prompt before any token of its own, if there is one.
        A member that computes its tokens again after preemption is none: its next row of
        logits is not the prompt's."""
        return next((s for s in self.running if s.is_fresh and s.is_computing_prompt), None)


class Sequence:
    """One completion being written, from admission to its last token.

    `token_ids[:num_computed_tokens]` have their keys and values in the blocks of `block_table`.
    A sequence that lost its blocks to preemption keeps its tokens and computes them again; one that
    pauses between turns keeps both.
    """

    __slots__ = (
        "block_table",
        "finish_reason",
        "group",
        "key",
        "logprobs",
        "max_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "order",
        "request",
        "sample",
        "sampling",
        "stop_token_ids",
        "token_ids",
        "turn_tokens",
    )

    def __init__(
        self,
        request: Request,
        sample: int,
        group: Group,
        *,
        arrival: int,
        seed: int,
        max_seq_len: int,
        num_turns: int,
    ) -> None:
        self.request = request
        self.sample = sample
        self.group = group
        self.sampling = request.sampling
        self.stop_token_ids = frozenset(request.sampling.stop_token_ids)
        self.key = SampleKey.of(seed, request.prompt_id, sample).value
        self.order = (0, request.priority, arrival, sample)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_tokens = max_total_tokens(request, max_seq_len)
        self.turn_tokens = -(-(self.max_tokens - self.num_prompt_tokens) // num_turns)
        self.num_computed_tokens = 0
        self.block_table: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason = ""

    def __lt__(self, other: Sequence) -> bool:
        """Whether it is admitted before `other`: fewer turns, then priority, then arrival."""
        return self.order < other.order

    @property
    def is_paused(self) -> bool:
        """Of one that waits: True when it kept its blocks, so that it can go on at once."""
        return bool(self.block_table)

    @property
    def ended_turn(self) -> bool:
        """Whether its last token was the last of a turn."""
        return len(self.logprobs) % self.turn_tokens == 0

    def count_turns(self) -> None:
        """Take its place behind those that have had fewer turns."""
        self.order = (len(self.logprobs) // self.turn_tokens, *self.order[1:])

    @property
    def is_fresh(self) -> bool:
        """True until its first token is sampled."""
        return not self.logprobs

    @property
    def is_computing_prompt(self) -> bool:
        """True until the last prompt token has been fed."""
        return self.num_computed_tokens < self.num_prompt_tokens

    def append(self, token_id: int, logprob: float) -> bool:
        """Take one sampled token; return True when it was the last. A log-probability of NaN says
        that its logits were not finite, so that the token means nothing."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if math.isnan(logprob):
            self.finish_reason = "not_finite"
        elif token_id in self.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        return self.finish_reason != ""


def max_total_tokens(request: Request, max_seq_len: int) -> int:
    """Most tokens, prompt included, that a completion of `request` can reach."""
    wanted = len(request.prompt_token_ids) + request.sampling.max_completion_tokens
    return min(wanted, max_seq_len)
