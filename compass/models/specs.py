"""The shape of a model, as one record: named sizes, and the HF `config.json` in and out.

Published sizes: Qwen3 technical report (arXiv 2505.09388, tables 1 and 2) and the models' own
`config.json` files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from compass.errors import UserError
from compass.models.hf.config import (
    flag,
    number,
    refuse_rope_scaling,
    required_int,
    rope_theta,
    table,
    wrong_value,
)

MOE_ARCHITECTURE = "Qwen3MoeForCausalLM"
DENSE_ARCHITECTURE = "Qwen3ForCausalLM"
_MODEL_TYPES = {MOE_ARCHITECTURE: "qwen3_moe", DENSE_ARCHITECTURE: "qwen3"}
_DENSE_HEAD_DIM = 128
_HF_DEFAULT_ROPE_THETA = 10_000.0
_QWEN3_ROPE_THETA = 1_000_000.0


class ParamCount(NamedTuple):
    """Parameters of a model; a tied embedding is counted once."""

    total: int
    active: int
    """Those one token meets: everything but the experts that it is not routed to."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes of a dense Qwen3 or a Qwen3-MoE model. UserError on sizes that cannot be built."""

    vocab_size: int
    """Rows of the embedding, at least the tokenizer's."""
    hidden_size: int
    """Model width D."""
    num_layers: int
    """Transformer blocks, dense and MoE together."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads; divides `num_heads`."""
    head_dim: int
    """Width of one head; need not be hidden_size / num_heads."""
    intermediate_size: int
    """Width of the feed-forward of dense layers."""
    moe_intermediate_size: int = 0
    """Width of one expert."""
    num_experts: int = 0
    """E, experts per MoE layer; 0 for a dense model."""
    top_k: int = 0
    """K, experts per token."""
    norm_topk_prob: bool = True
    """Divide the chosen experts' probabilities by their sum."""
    dense_layers: tuple[int, ...] = ()
    """In an MoE model, the layers that keep a dense feed-forward."""
    rope_theta: float = _QWEN3_ROPE_THETA
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    tie_word_embeddings: bool = False
    """The output projection is the embedding."""
    max_seq_len: int = 40_960
    """Longest sequence the rotary table covers."""
    init_std: float = 0.02
    """Standard deviation of freshly initialised weights."""

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: choose num_kv_heads that divides it"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd: rotary embeddings need an even one")
        if self.num_experts and not 1 <= self.top_k <= self.num_experts:
            raise UserError(
                f"top_k {self.top_k} with {self.num_experts} experts: "
                f"choose top_k from 1 to {self.num_experts}"
            )
        strays = [i for i in self.dense_layers if not 0 <= i < self.num_layers]
        if strays:
            raise UserError(
                f"dense layers {strays} do not exist: layers go from 0 to {self.num_layers - 1}"
            )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers, ascending; empty for a dense model."""
        if not self.num_experts:
            return ()
        return tuple(i for i in range(self.num_layers) if i not in self.dense_layers)

    @property
    def num_moe_layers(self) -> int:
        """L of the shape legends."""
        return len(self.moe_layers)

    @property
    def route_dtype(self) -> torch.dtype:
        """The smallest unsigned type that holds every expert id."""
        return torch.uint8 if self.num_experts <= 256 else torch.uint16

    @property
    def num_params(self) -> ParamCount:
        """Closed-form parameter counts."""
        d = self.hidden_size
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        attention = 2 * d * self.head_dim * (self.num_heads + self.num_kv_heads) + 2 * self.head_dim
        expert = 3 * d * self.moe_intermediate_size
        num_moe = self.num_moe_layers
        num_dense = self.num_layers - num_moe
        shared = embeddings + d + self.num_layers * (attention + 2 * d)
        shared += num_dense * 3 * d * self.intermediate_size + num_moe * d * self.num_experts
        return ParamCount(
            total=shared + num_moe * self.num_experts * expert,
            active=shared + num_moe * self.top_k * expert,
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Read an HF `config.json` written by transformers 4 or 5.

        Raises UserError on an architecture or a feature that Compass does not build.
        """
        architecture = _architecture(config)
        _refuse_unsupported_features(config)
        spec = cls(
            **_sizes(config, _HF_NAMES),
            head_dim=_head_dim(config, architecture),
            rope_theta=rope_theta(config, _HF_DEFAULT_ROPE_THETA),
            rms_norm_eps=number(config, "rms_norm_eps"),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
            init_std=number(config, "initializer_range", cls.init_std),
        )
        if architecture == DENSE_ARCHITECTURE:
            return spec
        return replace(
            spec,
            **_sizes(config, _HF_MOE_NAMES),
            norm_topk_prob=flag(config, "norm_topk_prob", False),
            dense_layers=_dense_layers(config, spec.num_layers),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model, readable by transformers 4 and 5.

        `rope_theta` is written where each of the two looks for it: a reader that does not find
        it silently takes 10000.
        """
        architecture = MOE_ARCHITECTURE if self.num_experts else DENSE_ARCHITECTURE
        fields = asdict(self)
        config: dict[str, Any] = {
            "architectures": [architecture],
            "model_type": _MODEL_TYPES[architecture],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "head_dim": self.head_dim,
            "initializer_range": self.init_std,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "sliding_window": None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "use_sliding_window": False,
        }
        config |= {keys[0]: fields[field] for field, keys in _HF_NAMES.items()}
        if self.num_experts:
            config |= {keys[0]: fields[field] for field, keys in _HF_MOE_NAMES.items()}
            config |= {
                "norm_topk_prob": self.norm_topk_prob,
                "decoder_sparse_step": 1,
                "mlp_only_layers": list(self.dense_layers),
            }
        return config


# Our integer field -> the keys HF files use for it; the first is the one we write.
_HF_NAMES = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "intermediate_size": ("intermediate_size",),
    "max_seq_len": ("max_position_embeddings",),
}
_HF_MOE_NAMES = {
    "moe_intermediate_size": ("moe_intermediate_size",),
    "num_experts": ("num_experts", "num_local_experts"),
    "top_k": ("num_experts_per_tok",),
}


def _check_positive(spec: ModelSpec) -> None:
    names = ["vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"]
    names += ["max_seq_len"]
    if spec.num_experts:
        names.append("moe_intermediate_size")
    if not spec.num_experts or spec.dense_layers:
        names.append("intermediate_size")
    for name in names:
        if getattr(spec, name) < 1:
            raise UserError(f"{name} is {getattr(spec, name)}: it must be at least 1")


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong_value("architectures", names, "a list of names")
    supported = [name for name in names if name in _MODEL_TYPES]
    if not supported:
        found = ", ".join(names) or f"none named (model_type {config.get('model_type')!r})"
        raise UserError(
            f"unsupported architecture: {found}; Compass builds {' and '.join(_MODEL_TYPES)}"
        )
    return supported[0]


def _refuse_unsupported_features(config: Mapping[str, Any]) -> None:
    refuse_rope_scaling(config)
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise UserError(
            f"sliding_window {config['sliding_window']} is in use: only full attention is supported"
        )
    kinds = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise UserError(f"layer_types are {kinds}: only 'full_attention' is supported")
    if config.get("attention_bias"):
        raise UserError("attention_bias true is not supported: only projections without bias")
    if config.get("quantization_config"):
        method = table(config, "quantization_config").get("quant_method", "unnamed")
        raise UserError(f"{method!r} quantised weights are not supported: give the bf16 checkpoint")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"hidden_act {activation!r} is not supported: only 'silu'")


def _sizes(config: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    return {field: required_int(config, *keys) for field, keys in names.items()}


def _head_dim(config: Mapping[str, Any], architecture: str) -> int:
    if config.get("head_dim") is not None:
        return required_int(config, "head_dim")
    # What transformers itself does when the key is absent.
    if architecture == DENSE_ARCHITECTURE:
        return _DENSE_HEAD_DIM
    num_heads = required_int(config, "num_attention_heads")
    return required_int(config, "hidden_size") // max(1, num_heads)


def _dense_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
        raise wrong_value("mlp_only_layers", listed, "a list of layer numbers")
    step = required_int({"decoder_sparse_step": 1} | dict(config), "decoder_sparse_step")
    if step < 1:
        raise wrong_value("decoder_sparse_step", step, "at least 1")
    return tuple(i for i in range(num_layers) if i in listed or (i + 1) % step)


def _dense(width: int, layers: int, heads: int, ffn: int, tied: bool) -> ModelSpec:
    return ModelSpec(
        vocab_size=151_936,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=ffn,
        tie_word_embeddings=tied,
    )


_DEBUG = ModelSpec(
    vocab_size=512,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_experts=8,
    top_k=2,
    max_seq_len=4096,
    # 0.02 is tuned to wide models; at this width it learns late.
    init_std=0.06,
)

_QWEN3_30B_A3B = ModelSpec(
    vocab_size=151_936,
    hidden_size=2048,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_experts=128,
    top_k=8,
)

SPECS: Mapping[str, ModelSpec] = {
    "debug": _DEBUG,
    "debug-4m": replace(
        _DEBUG,
        vocab_size=4096,
        hidden_size=256,
        head_dim=64,
        moe_intermediate_size=96,
        tie_word_embeddings=True,
        init_std=0.04,
    ),
    "debug-dense": replace(_DEBUG, num_experts=0, top_k=0, moe_intermediate_size=0),
    "0.6b": _dense(1024, 28, 16, 3072, tied=True),
    "1.7b": _dense(2048, 28, 16, 6144, tied=True),
    "4b": _dense(2560, 36, 32, 9728, tied=True),
    "8b": _dense(4096, 36, 32, 12_288, tied=False),
    "14b": _dense(5120, 40, 40, 17_408, tied=False),
    "32b": _dense(5120, 64, 64, 25_600, tied=False),
    "30b-a3b": _QWEN3_30B_A3B,
    "235b-a22b": replace(
        _QWEN3_30B_A3B,
        hidden_size=4096,
        num_layers=94,
        num_heads=64,
        intermediate_size=12_288,
        moe_intermediate_size=1536,
    ),
}
