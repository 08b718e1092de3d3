"""The policy: a Qwen3 or Qwen3-MoE decoder over packed tokens, built from torchtitan's blocks.

Shape legend: T packed tokens, D model width, V vocabulary, R rows that are scored or sampled from,
B and L torchtitan's batch (always 1 here) and sequence (T) axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compass.models.context import ForwardContext
from compass.models.layers.attention import PolicyAttention, PolicyQKV
from compass.models.layers.dispatch import PolicyDispatcher
from compass.models.layers.experts import PolicyExperts, PolicyMoE, PolicyRoutedExperts
from compass.models.layers.norm import PolicyNorm
from compass.models.layers.products import wide_linear
from compass.models.layers.rotary import PolicyRotary
from compass.models.layers.router import ReplayRouter
from compass.models.layers.vocabulary import score_targets
from compass.models.specs import ModelSpec
from compass.models.titan import (
    Embedding,
    FeedForward,
    GQAttention,
    Linear,
    Module,
)
from compass.types import TokenScores


class PolicyBlock(Module):
    """Pre-norm transformer block: attention, then experts or a dense feed-forward."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        attention: GQAttention.Config
        attention_norm: PolicyNorm.Config
        ffn_norm: PolicyNorm.Config
        moe: PolicyMoE.Config | None
        feed_forward: FeedForward.Config | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = config.attention.build()
        self.attention_norm = config.attention_norm.build()
        self.ffn_norm = config.ffn_norm.build()
        self.moe = None if config.moe is None else config.moe.build()
        self.feed_forward = None if config.feed_forward is None else config.feed_forward.build()
        self.recompute = False

    def forward(self, x_BLD: Tensor, context: ForwardContext, positions_BL: Tensor) -> Tensor:
        """[1, T, D] -> [1, T, D]. With `recompute`, backward runs the block a second time; the
        context still holds the forced routes then, so the second run makes the same choices."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                self._forward,
                x_BLD,
                context,
                positions_BL,
                use_reentrant=False,
                preserve_rng_state=False,  # nothing in it is random
            )
        return self._forward(x_BLD, context, positions_BL)

    def _forward(self, x_BLD: Tensor, context: ForwardContext, positions_BL: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), context, positions_BL)
        if self.moe is not None:
            return x_BLD + self.moe(self.ffn_norm(x_BLD), context.routing)
        assert self.feed_forward is not None
        return x_BLD + self.feed_forward(self.ffn_norm(x_BLD))


class Policy(nn.Module):
    """A decoder that turns packed tokens into logits, or into scores of given targets."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.compute_dtype = torch.float32
        """Of activations and, while it computes, of weights. Set when the policy is sharded."""
        self.tok_embeddings = Embedding.Config(
            num_embeddings=spec.vocab_size, embedding_dim=spec.hidden_size
        ).build()
        self.layers = nn.ModuleDict(
            {str(i): _block_config(spec, i).build() for i in range(spec.num_layers)}
        )
        for block in self.blocks[1:]:  # one rotary table, not one per layer
            block.attention.rope = self.rope
        self.norm = _norm(spec.hidden_size, spec).build()
        self.lm_head = _linear(spec.hidden_size, spec.vocab_size).build()
        if spec.tie_word_embeddings:
            self.lm_head.weight = self.tok_embeddings.weight

    @property
    def blocks(self) -> list[PolicyBlock]:
        """The layers, in order."""
        return [cast(PolicyBlock, block) for block in self.layers.values()]

    @property
    def rope(self) -> PolicyRotary:
        """The rotary table every layer shares."""
        return self.blocks[0].attention.rope

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        context: ForwardContext,
        rows_R: Tensor,
        targets_R: Tensor | None = None,
        temperature: float = 1.0,
        *,
        entropy_gradient: bool = False,
    ) -> Tensor | TokenScores:
        """Run the decoder; project only `rows_R` onto the vocabulary.

        Args:
            token_ids_T: packed tokens of all sequences.
            positions_T: each token's position in its own sequence.
            context: attention backend and routing trace.
            rows_R: packed positions whose next token is wanted.
            targets_R: when given, those next tokens are scored and no logits are kept.
            temperature: logits are divided by it before scoring.
            entropy_gradient: the entropies of `TokenScores` carry one.

        Returns:
            logits_RV float32 (undivided) without targets, `TokenScores` with them.
        """
        x_BLD = self.tok_embeddings(token_ids_T.unsqueeze(0))
        for block in self.blocks:
            x_BLD = block(x_BLD, context, positions_T.unsqueeze(0))
        x_RD = self.norm(x_BLD[0].index_select(0, rows_R))
        if targets_R is None:
            return self._logits(x_RD)
        return score_targets(
            x_RD,
            self.lm_head.weight,
            targets_R,
            temperature,
            entropy_gradient=entropy_gradient,
        )

    def _logits(self, x_RD: Tensor) -> Tensor:
        """[R, V] in float32 whatever the compute dtype: a logit of 20 rounded to bfloat16 is off by
        up to 0.06, which would drown every other difference between generator and trainer."""
        return wide_linear(x_RD, self.lm_head.weight)


def build_model(spec: ModelSpec, device: torch.device | str = "meta") -> Policy:
    """A policy without weights worth having: allocate on `device`, fill later. Rotary tables are
    ready unless the device is meta (see `materialize_buffers`)."""
    with torch.device(device):
        return Policy(spec)


def materialize_buffers(policy: Policy, device: torch.device | str) -> None:
    """Compute the rotary table on `device`."""
    policy.rope._init_self_buffers(buffer_device=torch.device(device))


def iter_init(policy: Policy, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, full float32 tensor) of a random initialisation: normal with the spec's `init_std`,
    output projections scaled by 1/sqrt(2 L) (arXiv 1909.08053), norms at one.

    Every tensor is drawn from its own generator, keyed by seed and name, so that each rank of any
    layout makes the same weights.
    """
    spec = policy.spec
    residual = spec.init_std / (2 * spec.num_layers) ** 0.5
    for name, parameter in policy.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("norm.weight"):
            yield name, torch.ones(shape)
            continue
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        is_output = name.endswith(("attention.wo.weight", "w2_EDF", "feed_forward.w2.weight"))
        std = residual if is_output else spec.init_std
        yield name, torch.empty(shape).normal_(0.0, std, generator=generator)


def _linear(in_features: int, out_features: int) -> Linear.Config:
    return Linear.Config(in_features=in_features, out_features=out_features)


def _norm(width: int, spec: ModelSpec) -> PolicyNorm.Config:
    return PolicyNorm.Config(normalized_shape=width, eps=spec.rms_norm_eps)


def _block_config(spec: ModelSpec, layer: int) -> PolicyBlock.Config:
    sparse = layer in spec.moe_layers
    return PolicyBlock.Config(
        attention=_attention_config(spec, layer),
        attention_norm=_norm(spec.hidden_size, spec),
        ffn_norm=_norm(spec.hidden_size, spec),
        moe=_moe_config(spec, spec.moe_layers.index(layer)) if sparse else None,
        feed_forward=None if sparse else _feed_forward_config(spec),
    )


def _attention_config(spec: ModelSpec, layer: int) -> GQAttention.Config:
    width, heads = spec.hidden_size, partial(_linear, spec.hidden_size)
    return GQAttention.Config(
        dim=width,
        n_heads=spec.num_heads,
        n_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        qkv_linear=PolicyQKV.Config(
            head_dim=spec.head_dim,
            wq=heads(spec.num_heads * spec.head_dim),
            wkv=heads(spec.num_kv_heads * spec.head_dim),
        ),
        wo=_linear(spec.num_heads * spec.head_dim, width),
        qk_norm=_norm(spec.head_dim, spec),
        inner_attention=PolicyAttention.Config(layer=layer),
        rope=PolicyRotary.Config(
            dim=spec.head_dim, max_seq_len=spec.max_seq_len, theta=spec.rope_theta
        ),
    )


def _feed_forward_config(spec: ModelSpec) -> FeedForward.Config:
    up = _linear(spec.hidden_size, spec.intermediate_size)
    return FeedForward.Config(w1=up, w2=_linear(spec.intermediate_size, spec.hidden_size), w3=up)


def _moe_config(spec: ModelSpec, moe_layer: int) -> PolicyMoE.Config:
    return PolicyMoE.Config(
        num_experts=spec.num_experts,
        router=ReplayRouter.Config(
            moe_layer=moe_layer,
            num_experts=spec.num_experts,
            gate=_linear(spec.hidden_size, spec.num_experts),
            top_k=spec.top_k,
            score_func="softmax",
            route_norm=spec.norm_topk_prob,
        ),
        routed_experts=PolicyRoutedExperts.Config(
            inner_experts=PolicyExperts.Config(
                dim=spec.hidden_size,
                hidden_dim=spec.moe_intermediate_size,
                num_experts=spec.num_experts,
            ),
            token_dispatcher=PolicyDispatcher.Config(
                num_experts=spec.num_experts, top_k=spec.top_k
            ),
        ),
    )
