"""The records that flow through Compass.

Frozen and keyword-only: each is built in exactly one place, and nothing is filled in later.
This module does not import torch at run time, because verifier workers import it.

Shape legend: N tokens of one sequence (prompt + completion), n completion tokens,
T packed tokens, R scored (loss) tokens, B sequences, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Message = Mapping[str, Any]
"""One chat message: the texts `role` and `content`, and `tool_calls` where it has them."""

THINK_START, THINK_END = "<think>", "</think>"
"""Open and close a policy's reasoning; what follows is its answer."""

Replay = Literal["r3", "r2", "off"]
"""Expert choices of an update: the rollout's, those of the old scores, or new ones."""

FLAT_TOLERANCE = 1e-6
"""A group whose rewards span no more than this is flat. Never test std > 0:
float residue would explode the advantage."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One task. Built by `compass.gym.datasets`."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    domain: str = "math"
    difficulty: float | None = None
    lang: str | None = None
    raw: bool = False
    """True: `messages` is a single message whose content is fed as it stands, with no template."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every further field of the prompt file, untouched, for the verifier."""
    where: str = field(default="", compare=False)
    """`FILE:LINE` that it was read from; empty for one that a program made."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]] | None:
        """Functions that the chat template offers to the policy, as transformers has them."""
        return self.extra.get("tools")

    @property
    def name(self) -> str:
        """What an error calls it: `FILE:LINE: prompt 'id'`."""
        return f"{self.where}: prompt {self.id!r}" if self.where else f"prompt {self.id!r}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a verifier said of one completion. Built by `compass.gym`.

    A wrong answer is a valid verdict of 0; a verifier that broke is `valid=False` with a reason,
    and the rollout then takes no part in its group's statistics.
    """

    verdict: float
    """In [0, 1]; 1 is right: what pass rates, growth and evaluation go by. Meaningless when not
    valid."""
    reward: float
    """Any finite number: what advantages go by. The verdict, unless somebody says otherwise."""
    valid: bool
    reason: str
    """Empty for a plain verdict; otherwise why (`timeout`, `crash: ...`, `no answer found`)."""
    breakdown: Mapping[str, float]
    """Named components, logged as `reward/<name>/mean`."""
    seconds: float
    """Wall time the verifier took."""
    answer: str | None = None
    """What was judged, read out of the completion; None where nothing was found, or its domain
    reads no single answer."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample one completion."""

    max_completion_tokens: int
    temperature: float = 1.0
    """0 is greedy. Rollout and trainer divide logits by the same number."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the generator wrote for one (prompt, sample). Built by `compass.generate.generator`."""

    prompt_id: str
    sample: int
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    """n sampled ids, the stop token included when there was one."""
    logprobs: Tensor
    """[n] float32: log-probability under the distribution that was sampled from, in nats."""
    routed_experts: Tensor
    """[N-1, L, K] unsigned: expert ids of every fed token; the last sampled token was never fed."""
    finish_reason: str
    """`stop`, `length`, or `not_finite` where the logits of the last token were NaN or infinite."""
    policy_version: int


@dataclass(frozen=True, kw_only=True)
class RolloutTokens:
    """Prompt and completion of a rollout as one sequence, token by token. Built by
    `compass.rl.rollout` on the rank that wrote it, and by `compass.rl.placement.exchange` on the
    rank that trains it.

    Every per-token field has N entries; `routed_experts` has N-1 rows.
    """

    token_ids: Tensor
    """[N] int64."""
    loss_mask: Tensor
    """[N] bool: tokens the policy wrote."""
    rollout_logprobs: Tensor
    """[N] float32 nats; 0 outside `loss_mask`."""
    routed_experts: Tensor
    """[N-1, L, K] unsigned."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        lengths = (len(self.loss_mask), len(self.rollout_logprobs), len(self.routed_experts) + 1)
        if any(length != n for length in lengths):
            raise ValueError(
                f"a rollout of {n} tokens, but loss_mask, rollout_logprobs and routed_experts+1 "
                f"have {lengths}"
            )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A scored completion without its tokens: light enough for its group's rank to have it the
    moment it is scored. Built by `compass.rl.rollout`, and given a new score there where rewards
    look at the whole group."""

    prompt_id: str
    sample: int
    num_prompt_tokens: int
    num_completion_tokens: int
    repetition: float
    """Of the completion: see `compass.rl.zero_variance.reshape.repetition`."""
    finish_reason: str
    policy_version: int
    score: Score
    holder: int
    """The rank that wrote it and holds its `RolloutTokens`."""
    slot: int
    """Where among the holder's (`compass.rl.placement.rank_rollouts`)."""
    completion_ids: tuple[int, ...] = ()
    """What was written, for rewards that look at the whole group; empty where there are none."""

    @property
    def num_tokens(self) -> int:
        """N, prompt and completion."""
        return self.num_prompt_tokens + self.num_completion_tokens


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt. Built by `compass.rl.rollout`."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    weight: float = 1.0
    """Factor on the loss of each rollout: how many there are depended on their verdicts
    (`compass.rl.zero_variance.weight`)."""
    count: float = 1.0
    """What each rollout, and each of its tokens, adds to a denominator."""

    @property
    def valid_verdicts(self) -> list[float]:
        """Verdicts of the rollouts whose verifier answered."""
        return [r.score.verdict for r in self.rollouts if r.score.valid]

    @property
    def valid_rewards(self) -> list[float]:
        """Rewards of the rollouts whose verifier answered."""
        return [r.score.reward for r in self.rollouts if r.score.valid]

    @property
    def is_flat(self) -> bool:
        """True when no two valid rewards differ: before shaping, the group teaches nothing."""
        return _agree(self.valid_rewards)

    @property
    def is_tied(self) -> bool:
        """True when no two valid verdicts differ: all are right, all wrong, or all in between."""
        return _agree(self.valid_verdicts)


def _agree(values: Sequence[float]) -> bool:
    return not values or max(values) - min(values) <= FLAT_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Sequences packed end to end for one forward/backward. Built by `compass.rl.pack` and
    `compass.train.data`.

    A sequence of N tokens is fed as its first N-1 tokens; the scored rows are those whose
    *next* token carries loss. So T counts fed tokens and R counts loss tokens.
    """

    token_ids: Tensor
    """[T] int64, fed tokens."""
    positions: Tensor
    """[T] int64, restarting at 0 for each sequence."""
    sequence_lengths: tuple[int, ...]
    """B fed lengths; they sum to T."""
    rows: Tensor
    """[R] int64 into T: the fed token that predicts each loss token."""
    targets: Tensor
    """[R] int64: the loss tokens themselves."""
    sequence_ids: Tensor
    """[R] int64 in [0, B): the sequence of each loss token, non-decreasing."""
    advantages: Tensor
    """[R] float32; for SFT, the token's loss weight."""
    flat_signs: Tensor
    """[B] int64: +1 (all right) or -1 (all wrong) for sequences of a flat group that RL-ZVP is to
    train, whose `advantages` are 0; 0 for all others (docs/zero_variance.md, stage 4)."""
    weights: Tensor
    """[B] float32: factor on the loss of each sequence (`RolloutGroup.weight`)."""
    rollout_logprobs: Tensor
    """[R] float32 nats; zeros where nothing was sampled (SFT)."""
    routed_experts: Tensor | None
    """[T, L, K] recorded choices, unsigned as they were recorded, or signed with a row of -1 where
    missing; None: nothing to replay."""

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_lengths)


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """The policy's view of a microbatch's loss tokens. Built by `compass.models.policy`."""

    logprobs: Tensor
    """[R] float32 nats, of the targets, at the sampling temperature."""
    entropy: Tensor
    """[R] float32 nats over the full vocabulary; detached unless a gradient was asked for."""
