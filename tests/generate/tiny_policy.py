"""A small random policy with decisive routers, and what a full forward pass says of a sequence."""

import torch

from compass.models.attention import PackedAttention
from compass.models.context import ForwardContext, RoutingTrace
from compass.models.parallel import init_policy
from compass.models.policy import Policy, build_model
from compass.models.specs import ModelSpec

TINY = ModelSpec(
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    moe_intermediate_size=24,
    num_experts=6,
    top_k=2,
    dense_layers=(1,),
    max_seq_len=64,
    # Large, so that distributions are uneven and routers far from ties.
    init_std=0.2,
)


def make_policy(spec: ModelSpec, seed: int) -> Policy:
    policy = build_model(spec, "cpu")
    init_policy(policy, seed)
    return policy


def full_forward(policy: Policy, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, V] logits and [N, L, K] routes of one sequence, with no cache."""
    rows = torch.arange(len(token_ids))
    spec = policy.spec
    trace = RoutingTrace.empty(len(token_ids), spec.num_moe_layers, spec.top_k)
    attention = PackedAttention((len(token_ids),), "cpu")
    with torch.no_grad():
        context = ForwardContext(attention=attention, routing=trace)
        logits = policy(torch.tensor(token_ids), rows, context, rows)
    return logits, trace.live_TLK
