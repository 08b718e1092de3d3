"""What the generator is told. Apart from it, so that flags are checked before it is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from compass.errors import UserError

AttentionName = Literal["auto", "gather", "triton", "varlen", "flash"]


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """How weights and activations are rounded when `generator.weights` is fp8."""

    quantise_activations: bool = True
    """Round the input of every quantised layer to E4M3 too, with a scale for each token. Without
    it CUDA multiplies dequantised weights, which saves memory but no time."""
    max_rel_error: float = 0.05
    """Layers whose relative Frobenius error is above this when the generator starts stay in the
    compute dtype. Normally distributed weights come to 0.026; no row of finite numbers exceeds
    0.0625 by much."""

    def __post_init__(self) -> None:
        if not self.max_rel_error > 0:
            raise UserError(f"generator.fp8.max_rel_error={self.max_rel_error} must be above 0")


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What the generator computes with, and how it uses memory and batches."""

    weights: Literal["direct", "fp8"] = "direct"
    """`direct`: the policy's own gathered weights, no copy, exact agreement with the trainer.
    `fp8`: E4M3 buffers of the generator's own (docs/fp8_generator.md), a quarter of float32's
    memory and half of bfloat16's, and the policy stays sharded."""
    fp8: Fp8Config = field(default_factory=Fp8Config)
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Keys and values in the cache: `auto` the compute dtype; `fp8` E4M3 with a scale for each
    token and key/value head."""
    block_size: int = 16
    """Tokens per block of the KV cache."""
    num_blocks: int | None = None
    """Blocks of the KV cache on each rank; None takes as many as fit in `kv_cache_gb`."""
    kv_cache_gb: float = 1.0
    """KV cache on each rank in gigabytes (1e9 bytes), used when `num_blocks` is not given. Never
    more is allocated than `max_num_seqs` sequences of full context can fill. It lives while
    completions are written, and its memory serves the update in between."""
    max_num_seqs: int = 256
    """Completions decoded at once on each rank."""
    max_tokens_per_step: int = 2048
    """Tokens fed in one forward pass: every decoding completion's one, the rest for chunks of
    prompts. At least `max_num_seqs`."""
    attention: AttentionName = "auto"
    """How decoding reads the KV cache (compass/generate/attention/decode_backends.py): `auto` is
    `gather` on CPU, and on CUDA our `triton` kernel where triton is installed."""
    cuda_graphs: bool | None = None
    """Replay decode steps as CUDA graphs; None, wherever they can be recorded: on CUDA with a
    kernel for attention and, for experts, bfloat16 and compute capability 9. One is recorded, in
    about a tenth of a second, for each rounded size of batch and context that a batch of
    completions meets; what a step then takes is in docs/gpu.md."""

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise UserError(f"generator.{name}={getattr(self, name)} must be at least 1")
        if self.max_tokens_per_step < self.max_num_seqs:
            raise UserError(
                f"generator.max_tokens_per_step={self.max_tokens_per_step} is below "
                f"generator.max_num_seqs={self.max_num_seqs}: every completion must advance in "
                f"each step; raise the first or lower the second"
            )

    @property
    def quantised(self) -> bool:
        """Whether the generator is by design not exactly the trainer."""
        return self.weights == "fp8" or self.kv_dtype == "fp8"
