"""The decoder on packed tokens: what it scores, and that neither packing nor chunking shows.

Shape legend: T packed tokens, R scored rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compass.models.context import ForwardContext
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import init_policy
from compass.models.policy import Policy, build_model, iter_init
from compass.types import TokenScores
from tests.tiny_batch import SPEC, flat

LENGTHS = (9, 1, 14, 6)
T = sum(LENGTHS)


@pytest.fixture
def policy() -> Policy:
    return make_policy()


def make_policy(**changes) -> Policy:
    policy = build_model(replace(SPEC, **changes), "cpu")
    init_policy(policy, 0)
    return policy


def random_ids(num_tokens: int, seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, SPEC.vocab_size, (num_tokens,), generator=noise)


def forward(policy: Policy, token_ids_T: Tensor, lengths: tuple[int, ...], rows_R: Tensor, **how):
    context = ForwardContext(attention=PackedAttention(lengths, "cpu"), routing=None)
    positions_T = torch.cat([torch.arange(n) for n in lengths])
    return policy(token_ids_T, positions_T, context, rows_R, **how)


def score(policy: Policy, rows_R: Tensor, temperature: float = 1.0) -> TokenScores:
    return forward(
        policy,
        random_ids(T, 0),
        LENGTHS,
        rows_R,
        targets_R=random_ids(len(rows_R), 1),
        temperature=temperature,
    )


def gradients(policy: Policy, scores: TokenScores) -> Tensor:
    """Of a sum with uneven weights, over all parameters."""
    weights_R = torch.linspace(-1, 1, len(scores.logprobs))
    return flat(torch.autograd.grad((weights_R * scores.logprobs).sum(), list(policy.parameters())))


def test_packed_sequences_give_the_logits_of_each_alone(policy):
    token_ids_T = random_ids(T, 0)
    packed_TV = forward(policy, token_ids_T, LENGTHS, torch.arange(T))
    assert packed_TV.dtype == torch.float32
    alone_TV = [
        forward(policy, part, (len(part),), torch.arange(len(part)))
        for part in token_ids_T.split(LENGTHS)
    ]
    torch.testing.assert_close(packed_TV, torch.cat(alone_TV), rtol=1e-5, atol=1e-5)


def test_a_change_in_one_sequence_reaches_only_what_follows_in_it(policy):
    token_ids_T = random_ids(T, 0)
    before_TV = forward(policy, token_ids_T, LENGTHS, torch.arange(T))
    place = 9 + 1 + 5  # in the third sequence
    token_ids_T[place] = (token_ids_T[place] + 1) % SPEC.vocab_size
    after_TV = forward(policy, token_ids_T, LENGTHS, torch.arange(T))
    changed_T = ((after_TV - before_TV).abs() > 1e-4).any(dim=1)
    assert changed_T.nonzero().squeeze(1).tolist() == list(range(place, 9 + 1 + 14))


def test_only_the_wanted_rows_are_projected(policy):
    rows_R = torch.tensor([3, 17, 4, 29])
    every_TV = forward(policy, random_ids(T, 0), LENGTHS, torch.arange(T))
    some_RV = forward(policy, random_ids(T, 0), LENGTHS, rows_R)
    torch.testing.assert_close(some_RV, every_TV[rows_R], rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("tied", [False, True])
def test_scores_and_gradients_are_those_of_log_softmax(temperature, tied):
    policy = make_policy(tie_word_embeddings=tied)
    rows_R = torch.arange(1, T, 2)
    targets_R = random_ids(len(rows_R), 1)
    logits_RV = forward(policy, random_ids(T, 0), LENGTHS, rows_R) / temperature
    log_probs_RV = logits_RV.double().log_softmax(dim=-1)
    expected = TokenScores(
        logprobs=log_probs_RV.gather(1, targets_R[:, None]).squeeze(1).float(),
        entropy=-(log_probs_RV.exp() * log_probs_RV).sum(dim=-1).float(),
    )
    got = score(policy, rows_R, temperature)
    torch.testing.assert_close(got.logprobs, expected.logprobs, rtol=0, atol=2e-6)
    torch.testing.assert_close(got.entropy, expected.entropy, rtol=0, atol=2e-6)
    assert not got.entropy.requires_grad
    torch.testing.assert_close(
        gradients(policy, got), gradients(policy, expected), rtol=1e-4, atol=1e-5
    )


def test_scoring_nothing_gives_nothing_and_still_has_a_gradient(policy):
    nothing = score(policy, torch.zeros(0, dtype=torch.int64))
    assert len(nothing.logprobs) == len(nothing.entropy) == 0
    assert not gradients(policy, nothing).any()


@pytest.mark.parametrize("num_experts", [SPEC.num_experts, 0])
def test_activation_checkpointing_changes_no_gradient(num_experts):
    policy = make_policy(num_experts=num_experts)
    kept = gradients(policy, score(policy, torch.arange(T)))
    for block in policy.blocks:
        block.recompute = True
    assert torch.equal(gradients(policy, score(policy, torch.arange(T))), kept)


# ---- initial weights


def test_initial_weights_follow_seed_and_name_alone():
    first, again = (dict(iter_init(build_model(SPEC), 3)) for _ in range(2))
    other = dict(iter_init(build_model(SPEC), 4))
    tied = dict(iter_init(build_model(replace(SPEC, tie_word_embeddings=True)), 3))
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert torch.equal(weight, other[name]) == name.endswith("norm.weight")
        if name != "lm_head.weight":
            assert torch.equal(weight, tied[name])
    matrices = [w.flatten()[:100] for n, w in first.items() if w.ndim > 1]
    assert len({w[0].item() for w in matrices}) == len(matrices)


def test_initial_weights_have_their_standard_deviations():
    """Those that write to the residual stream are scaled by 1 / sqrt(2 L)."""
    spec = replace(SPEC, hidden_size=64, num_layers=8, init_std=0.1)
    outputs = ("attention.wo.weight", "feed_forward.w2.weight", "w2_EDF")
    for name, weight in iter_init(build_model(spec), 0):
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        else:
            expected = 0.1 / 4 if name.endswith(outputs) else 0.1
            assert weight.std().item() == pytest.approx(expected, rel=0.1), name
