"""Router Replay: the choice is forced everywhere, and the gate keeps its gradient.

Shape legend: T tokens, D model width, E experts, K experts per token, L MoE layers.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compass.models.context import ForwardContext, RoutingTrace
from compass.models.layers.attention import PackedAttention
from compass.models.layers.experts import PolicyMoE
from compass.models.layers.router import ReplayRouter, check_routes, count_flips
from compass.models.parallel import init_policy
from compass.models.policy import Policy, build_model
from compass.models.titan import Linear
from tests.tiny_batch import SPEC, random_routes

T, D, E, K = 20, 8, 6, 3


def make_router(score_func: str = "softmax", route_norm: bool = True) -> ReplayRouter:
    router = ReplayRouter.Config(
        moe_layer=1,
        num_experts=E,
        gate=Linear.Config(in_features=D, out_features=E),
        top_k=K,
        score_func=score_func,
        route_norm=route_norm,
    ).build()
    torch.nn.init.normal_(router.gate.weight, generator=torch.Generator().manual_seed(0))
    return router


def activations(seed: int = 1) -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(seed))


def make_trace(forced_TLK: Tensor | None) -> RoutingTrace:
    return RoutingTrace.empty(T, 2, K, forced_TLK=forced_TLK)


# ---- the choice


def test_every_row_takes_the_forced_experts_in_their_order():
    forced_TLK = random_routes(T, 2, K, E, seed=0)
    trace = make_trace(forced_TLK)
    _, expert_ids_TK = make_router()(activations(), trace)
    assert torch.equal(expert_ids_TK, forced_TLK[:, 1])


def test_the_routers_own_choice_is_recorded_whatever_is_forced():
    router, x_TD = make_router(), activations()
    live = make_trace(None)
    _, live_TK = router(x_TD, live)
    by_hand_TK = (x_TD @ router.gate.weight.T).argsort(dim=1, descending=True)[:, :K]
    assert torch.equal(live_TK, by_hand_TK)
    assert torch.equal(live.live_TLK[:, 1], by_hand_TK)
    forced_TLK = random_routes(T, 2, K, E, seed=0)
    forced = make_trace(forced_TLK)
    router(x_TD, forced)
    assert torch.equal(forced.live_TLK[:, 1], by_hand_TK)
    assert not torch.equal(forced.live_TLK[:, 1], forced_TLK[:, 1])


def test_a_missing_row_routes_live_and_leaves_the_others_forced():
    router, x_TD = make_router(), activations()
    _, live_TK = router(x_TD, None)
    forced_TLK = random_routes(T, 2, K, E, seed=0)
    forced_TLK[::3] = -1
    _, expert_ids_TK = router(x_TD, make_trace(forced_TLK))
    assert torch.equal(expert_ids_TK[::3], live_TK[::3])
    kept = torch.arange(T) % 3 != 0
    assert torch.equal(expert_ids_TK[kept], forced_TLK[kept, 1])


def test_a_bias_decides_the_choice_but_not_the_gates():
    router, x_TD = make_router("sigmoid"), activations()
    bias_E = torch.zeros(E)
    bias_E[4] = 10.0
    gates_TK, expert_ids_TK = router(x_TD, None, bias_E)
    assert (expert_ids_TK[:, 0] == 4).all()
    scores_TK = (x_TD @ router.gate.weight.T).sigmoid().gather(1, expert_ids_TK)
    torch.testing.assert_close(gates_TK, scores_TK / scores_TK.sum(1, keepdim=True))


def test_routes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(20, 2, 2\), expected \(20, 2, 3\)"):
        make_trace(random_routes(T, 2, 2, E, seed=0))


# ---- the gates


def test_replayed_softmax_gates_are_a_softmax_over_the_forced_set_with_its_gradient():
    """g_i = p_i / sum of p over the set S = softmax of the logits of S; so
    dg_i / dlogit_j = g_i (1[i = j] - g_j) for j in S, and 0 for every other expert."""
    router, x_TD = make_router(), activations()
    forced_TLK = random_routes(T, 2, K, E, seed=0)
    gates_TK, expert_ids_TK = router(x_TD, make_trace(forced_TLK))
    logits_TE = x_TD @ router.gate.weight.detach().T
    g_TK = logits_TE.gather(1, expert_ids_TK).softmax(dim=1)
    torch.testing.assert_close(gates_TK, g_TK)

    upstream_TK = torch.randn(T, K, generator=torch.Generator().manual_seed(2))
    (gradient_ED,) = torch.autograd.grad(gates_TK, router.gate.weight, upstream_TK)
    expected_ED = torch.zeros(E, D)
    for t in range(T):
        for i in range(K):
            for j in range(K):
                dg = g_TK[t, i] * (float(i == j) - g_TK[t, j])
                expected_ED[forced_TLK[t, 1, j]] += upstream_TK[t, i] * dg * x_TD[t]
    torch.testing.assert_close(gradient_ED, expected_ED, rtol=1e-5, atol=1e-6)
    assert (gradient_ED.abs().sum(dim=1) > 1e-3).all()


@pytest.mark.parametrize("score_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize("route_norm", [True, False])
def test_gates_are_the_scores_of_the_forced_experts(score_func, route_norm):
    router, x_TD = make_router(score_func, route_norm), activations()
    forced_TLK = random_routes(T, 2, K, E, seed=3)
    gates_TK, _ = router(x_TD, make_trace(forced_TLK))
    logits_TE = (x_TD @ router.gate.weight.T).detach().double()
    scores_TE = logits_TE.softmax(1) if score_func == "softmax" else 1 / (1 + (-logits_TE).exp())
    for t in range(T):
        chosen = [scores_TE[t, e].item() for e in forced_TLK[t, 1].tolist()]
        total = sum(chosen) if route_norm else 1.0
        assert gates_TK[t].tolist() == pytest.approx([s / total for s in chosen], rel=1e-5)


# ---- the experts


def moe_by_loop(moe: PolicyMoE, x_TD: Tensor, routes_TK: Tensor) -> Tensor:
    """Every token visits its experts one by one; gates are a softmax over their logits."""
    experts = moe.routed_experts.inner_experts
    gates_TK = (x_TD @ moe.router.gate.weight.T).gather(1, routes_TK).softmax(dim=1)
    out_TD = []
    for t in range(len(x_TD)):
        mixed_D = torch.zeros(x_TD.shape[1])
        for k, e in enumerate(routes_TK[t].tolist()):
            hidden_F = F.silu(experts.w1_EFD[e] @ x_TD[t]) * (experts.w3_EFD[e] @ x_TD[t])
            mixed_D = mixed_D + gates_TK[t, k] * (experts.w2_EDF[e] @ hidden_F)
        out_TD.append(mixed_D)
    return torch.stack(out_TD)


def make_policy(**changes) -> Policy:
    policy = build_model(replace(SPEC, **changes), "cpu")
    init_policy(policy, 0)
    return policy


def test_a_replayed_layer_and_all_its_gradients_equal_a_loop_over_the_forced_experts():
    moe = make_policy().blocks[0].moe
    assert moe is not None
    noise = torch.Generator().manual_seed(0)
    x_TD = torch.randn(15, SPEC.hidden_size, generator=noise).requires_grad_()
    routes_TLK = random_routes(15, SPEC.num_moe_layers, SPEC.top_k, SPEC.num_experts, seed=0)
    trace = RoutingTrace.empty(15, SPEC.num_moe_layers, SPEC.top_k, forced_TLK=routes_TLK)
    out_TD = moe(x_TD.unsqueeze(0), trace)[0]
    expected_TD = moe_by_loop(moe, x_TD, routes_TLK[:, 0])
    torch.testing.assert_close(out_TD, expected_TD, rtol=1e-5, atol=1e-6)
    live = RoutingTrace.empty(15, SPEC.num_moe_layers, SPEC.top_k)
    assert (moe(x_TD.unsqueeze(0), live)[0] - expected_TD).abs().max() > 1e-2

    upstream_TD = torch.randn(15, SPEC.hidden_size, generator=noise)
    leaves = [x_TD, *moe.parameters()]
    for got, want in zip(
        torch.autograd.grad(out_TD, leaves, upstream_TD),
        torch.autograd.grad(expected_TD, leaves, upstream_TD),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def forward_backward(policy: Policy, forced_TLK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of all parameters, flat, and the live routes."""
    lengths, spec = (9, 4, 7), policy.spec
    noise = torch.Generator().manual_seed(0)
    token_ids_T = torch.randint(0, spec.vocab_size, (20,), generator=noise)
    targets_T = torch.randint(0, spec.vocab_size, (20,), generator=noise)
    trace = RoutingTrace.empty(20, spec.num_moe_layers, spec.top_k, forced_TLK=forced_TLK)
    context = ForwardContext(attention=PackedAttention(lengths, "cpu"), routing=trace)
    positions_T = torch.cat([torch.arange(n) for n in lengths])
    scores = policy(token_ids_T, positions_T, context, torch.arange(20), targets_T)
    gradients = torch.autograd.grad(-scores.logprobs.mean(), list(policy.parameters()))
    return torch.cat([g.flatten() for g in gradients]), trace.live_TLK


def test_experts_of_every_layer_receive_exactly_the_forced_tokens():
    policy = make_policy()
    received = {}
    for layer, block in enumerate(policy.blocks):
        if block.moe is not None:
            block.moe.routed_experts.inner_experts.register_forward_pre_hook(
                lambda _, args, layer=layer: received.update({layer: args[1].tolist()})
            )
    routes_TLK = random_routes(20, SPEC.num_moe_layers, SPEC.top_k, SPEC.num_experts, seed=5)
    forward_backward(policy, routes_TLK)
    assert received == {
        layer: routes_TLK[:, column]
        .flatten()
        .bincount(minlength=SPEC.num_experts)
        .cumsum(0)
        .tolist()
        for column, layer in enumerate(SPEC.moe_layers)
    }


def test_the_recompute_of_activation_checkpointing_replays_too():
    """Forced choices differ from live ones, so a recompute that routed live would give other
    gradients. Routers of forced layers still learn."""
    policy = make_policy()
    routes_TLK = random_routes(20, SPEC.num_moe_layers, SPEC.top_k, SPEC.num_experts, seed=5)
    kept, live_TLK = forward_backward(policy, routes_TLK)
    assert (count_flips(routes_TLK, live_TLK).flips_L > 5).all()
    for block in policy.blocks:
        block.recompute = True
    recomputed, live_again_TLK = forward_backward(policy, routes_TLK)
    assert torch.equal(recomputed, kept)
    assert torch.equal(live_again_TLK, live_TLK)
    unforced, _ = forward_backward(policy, None)
    assert not torch.allclose(unforced, kept, rtol=0.1)


def test_a_recompute_asks_for_no_random_state(monkeypatch):
    """Nothing in a block is random; on a device, keeping its state would be a read a block."""
    policy = make_policy()
    for block in policy.blocks:
        block.recompute = True
    monkeypatch.delattr(torch, "get_rng_state")
    forward_backward(policy, None)


# ---- recorded routes


@pytest.mark.parametrize(
    ("row", "fine"),
    [
        ([0, 5, 3], True),
        ([-1, -1, -1], True),
        ([0, 0, 3], False),
        ([3, 1, 3], False),
        ([0, 6, 3], False),
        ([0, -2, 3], False),
        ([-1, 2, 3], False),
        ([-2, -2, -2], False),
    ],
)
def test_routes_that_no_router_could_have_made_are_refused_by_place(row, fine):
    routes_TLK = random_routes(4, 2, 3, 6, seed=0)
    routes_TLK[2, 1] = torch.tensor(row)
    if fine:
        check_routes(routes_TLK, 6)
        return
    with pytest.raises(ValueError, match=r"routed_experts\[2, 1\] = \[.*expected 3 distinct ids"):
        check_routes(routes_TLK, 6)


@given(
    seed=st.integers(0, 1000), num_tokens=st.integers(0, 12), missing=st.sets(st.integers(0, 11))
)
def test_flips_equal_a_loop_over_sets(seed, num_tokens, missing):
    recorded_TLK = random_routes(num_tokens, 3, 2, 4, seed)
    live_TLK = random_routes(num_tokens, 3, 2, 4, seed + 1)
    absent = {t for t in missing if t < num_tokens}
    for t in absent:
        recorded_TLK[t] = -1
    flips, flipped_tokens = [0, 0, 0], set()
    for t in set(range(num_tokens)) - absent:
        for layer in range(3):
            gone = set(recorded_TLK[t, layer].tolist()) - set(live_TLK[t, layer].tolist())
            flips[layer] += len(gone)
            flipped_tokens |= {t} if gone else set()
    counts = count_flips(recorded_TLK, live_TLK)
    assert counts.flips_L.tolist() == flips
    assert counts.tokens_with_flip == len(flipped_tokens)
    assert (counts.replayed_tokens, counts.missing_tokens) == (
        num_tokens - len(absent),
        len(absent),
    )


@pytest.mark.parametrize("num_experts", [2, 128, 256, 257, 65_536])
def test_routes_are_stored_in_the_smallest_type_that_holds_them(num_experts):
    dtype = replace(SPEC, num_experts=num_experts).route_dtype
    assert torch.tensor([num_experts - 1]).to(dtype).long().item() == num_experts - 1
    assert dtype.itemsize == (1 if num_experts <= 256 else 2)
