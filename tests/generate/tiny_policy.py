"""A small random policy with decisive routers, and what a full forward pass says of a sequence."""

import torch

from compass.models.context import ForwardContext, RoutingTrace
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import init_policy
from compass.models.policy import Policy, build_model
from compass.models.specs import ModelSpec
from tests.tiny_batch import SPEC

TINY = SPEC


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
