"""What our parameters are called in a Hugging Face checkpoint of Qwen3 or Qwen3-MoE.

Ours are torchtitan's names, with separate q, k and v projections.
"""

from __future__ import annotations

import re

_OUTER_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.qkv_linear.wq.weight": "self_attn.q_proj.weight",
    "attention.qkv_linear.wk.weight": "self_attn.k_proj.weight",
    "attention.qkv_linear.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "moe.router.gate.weight": "mlp.gate.weight",
}
_EXPERT_NAMES = {
    "moe.routed_experts.inner_experts.w1_EFD": "gate_proj",
    "moe.routed_experts.inner_experts.w2_EDF": "down_proj",
    "moe.routed_experts.inner_experts.w3_EFD": "up_proj",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def expert_stem(name: str) -> tuple[str, str] | None:
    """(prefix of the layer's experts, projection) of a stacked expert weight; None for others."""
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _EXPERT_NAMES:
        return None
    return f"model.layers.{match[1]}.mlp.experts", _EXPERT_NAMES[match[2]]


def hf_names(name: str, num_experts: int) -> tuple[str, ...]:
    """Tensors that hold our parameter `name`: one, or `num_experts` for a stacked weight."""
    if name in _OUTER_NAMES:
        return (_OUTER_NAMES[name],)
    experts = expert_stem(name)
    if experts is not None:
        stem, projection = experts
        return tuple(f"{stem}.{expert}.{projection}.weight" for expert in range(num_experts))
    match = _LAYER.fullmatch(name)
    assert match, f"parameter {name} has no place in a Qwen3 checkpoint"
    return (f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}",)
