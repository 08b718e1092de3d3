"""What a run asks of one rank's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from compass.distributed import ParallelConfig
from compass.generate.attention.kv_cache import KVCache
from compass.generate.config import GeneratorConfig
from compass.generate.fp8.numbers import E4M3
from compass.generate.generator import num_cache_blocks
from compass.models.config import DTYPES, PolicyConfig
from compass.models.load import spec_of
from compass.models.specs import ModelSpec
from compass.rl.pack import PackConfig
from compass.train.data import SftDataConfig
from compass.train.optim_config import OptimConfig
from compass.train.policy_loss import PolicyLossConfig
from compass.train.terms import LossTerms
from compass.types import Replay

LONGEST_PROMPT = 1024
"""Tokens, where nobody says otherwise: no prompt has been read when a run is planned."""


@dataclass(frozen=True, kw_only=True)
class RolloutWork:
    """What the generator of a rank is asked for."""

    generator: GeneratorConfig
    longest_prompt: int
    """Tokens."""
    max_completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything of a run that decides how much memory a rank needs. Built by `rl_workload` and
    `sft_workload`."""

    spec: ModelSpec
    world_size: int
    ep: int
    dp_replicate: int
    policy: PolicyConfig
    optim: OptimConfig
    device: Literal["cpu", "cuda"]
    """Whose branches of the code run."""
    longest_sequence: int
    """Fed tokens of the longest sequence that is trained on."""
    length_field: str
    """The field that bounds it."""
    max_tokens_per_microbatch: int
    microbatch_field: str
    """The field that says so."""
    scores_first: bool
    """There is a pass of old log-probabilities before the update."""
    rollout: RolloutWork | None
    """None: nothing is generated (SFT)."""
    has_reference: bool = False
    """A second copy of the weights is held, and scores what is trained."""
    entropy_gradient: bool = False
    """The loss has an entropy term."""

    @property
    def tokens_per_microbatch(self) -> int:
        """T of the largest microbatch: a longer sequence goes alone."""
        return max(self.max_tokens_per_microbatch, self.longest_sequence)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and gathered weights."""
        return DTYPES[self.policy.dtype]

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values in the cache."""
        assert self.rollout is not None
        return E4M3 if self.rollout.generator.kv_dtype == "fp8" else self.compute_dtype

    @property
    def num_cache_blocks(self) -> int:
        """Blocks of the KV cache; each holds its part of every layer."""
        assert self.rollout is not None
        return num_cache_blocks(self.spec, self.rollout.generator, self.kv_dtype)

    @property
    def cache_bytes(self) -> int:
        """Of the KV cache."""
        assert self.rollout is not None
        block_size = self.rollout.generator.block_size
        return self.num_cache_blocks * KVCache.bytes_per_block(self.spec, block_size, self.kv_dtype)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to simulate."""

    workload: Workload
    num_layers: int
    """Of the model, in place of its own."""
    imbalance: float
    """Rows that reach a rank's experts, over the mean of its expert-parallel group."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of tensors in one phase."""

    before: int
    """When it begins."""
    peaks: tuple[int, ...]
    """The most at once, in each stretch of it: a pass through the model is cut behind its first
    and its last layer, because what grows with the number of layers differs between these."""

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.peaks)


class RlSettings(Protocol):
    """The fields of `recipes/rl.py` that decide."""

    @property
    def model(self) -> str: ...
    @property
    def parallel(self) -> ParallelConfig: ...
    @property
    def policy(self) -> PolicyConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def generator(self) -> GeneratorConfig: ...
    @property
    def pack(self) -> PackConfig: ...
    @property
    def losses(self) -> PolicyLossConfig: ...
    @property
    def loss(self) -> str: ...
    @property
    def replay(self) -> Replay: ...
    @property
    def max_completion_tokens(self) -> int: ...
    @property
    def terms(self) -> LossTerms: ...


class SftSettings(Protocol):
    """The fields of `recipes/sft.py` that decide."""

    @property
    def model(self) -> str: ...
    @property
    def parallel(self) -> ParallelConfig: ...
    @property
    def policy(self) -> PolicyConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def data(self) -> SftDataConfig: ...


def rl_workload(
    cfg: RlSettings, world_size: int, *, longest_prompt: int = LONGEST_PROMPT
) -> Workload:
    """What reinforcement learning with `cfg` asks of each of `world_size` ranks.

    Raises:
        UserError: there is no such model, or no block of a KV cache.
    """
    spec = spec_of(cfg.model)
    return Workload(
        spec=spec,
        world_size=world_size,
        ep=cfg.parallel.ep,
        dp_replicate=cfg.parallel.dp_replicate,
        policy=cfg.policy,
        optim=cfg.optim,
        device=_device(cfg.parallel),
        longest_sequence=min(longest_prompt + cfg.max_completion_tokens, spec.max_seq_len) - 1,
        length_field="max_completion_tokens",
        max_tokens_per_microbatch=cfg.pack.max_tokens_per_microbatch,
        microbatch_field="pack.max_tokens_per_microbatch",
        scores_first=cfg.pack.num_minibatches > 1
        or cfg.replay == "r2"
        or cfg.losses.needs_entropies(cfg.loss),
        rollout=RolloutWork(
            generator=cfg.generator,
            longest_prompt=longest_prompt,
            max_completion_tokens=cfg.max_completion_tokens,
        ),
        has_reference=cfg.terms.kl_coef != 0,
        entropy_gradient=cfg.terms.entropy_coef != 0,
    )


def sft_workload(cfg: SftSettings, world_size: int) -> Workload:
    """What supervised learning with `cfg` asks of each of `world_size` ranks.

    Raises:
        UserError: there is no such model.
    """
    return Workload(
        spec=spec_of(cfg.model),
        world_size=world_size,
        ep=cfg.parallel.ep,
        dp_replicate=cfg.parallel.dp_replicate,
        policy=cfg.policy,
        optim=cfg.optim,
        device=_device(cfg.parallel),
        longest_sequence=cfg.data.max_len - 1,
        length_field="data.max_len",
        max_tokens_per_microbatch=cfg.data.max_tokens_per_microbatch,
        microbatch_field="data.max_tokens_per_microbatch",
        scores_first=False,
        rollout=None,
    )


def _device(cfg: ParallelConfig) -> Literal["cpu", "cuda"]:
    return "cpu" if cfg.device == "cpu" else "cuda"
