"""RL-ZVP against a loop from the equation (arXiv 2509.21880, eq. 5)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.rl.zero_variance.residual import ResidualConfig, residual_advantages

RESPONSE = st.tuples(st.sampled_from([-1, 0, 1]), st.lists(st.floats(0, 12), max_size=9))


def packed(responses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    entropy_R = torch.tensor([h for _, tokens in responses for h in tokens], dtype=torch.float64)
    lengths = torch.tensor([len(tokens) for _, tokens in responses], dtype=torch.int64)
    sequence_ids_R = torch.arange(len(responses)).repeat_interleave(lengths)
    return entropy_R, sequence_ids_R, torch.tensor([sign for sign, _ in responses])


@given(st.lists(RESPONSE, min_size=1, max_size=6), st.floats(0.01, 2))
def test_advantages_equal_a_loop_from_the_equation(responses, scale):
    expected = []
    for sign, tokens in responses:
        for entropy in tokens:
            if sign > 0:
                expected.append(scale * entropy)
            elif sign < 0:
                expected.append(-scale * (max(tokens) - entropy))
            else:
                expected.append(0.0)
    got = residual_advantages(*packed(responses), scale=scale)
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_no_gradient_flows_through_the_entropy():
    entropy_R, sequence_ids_R, sign_B = packed([(1, [1.0, 2.0]), (-1, [3.0, 0.5])])
    entropy_R.requires_grad_()
    assert not residual_advantages(entropy_R, sequence_ids_R, sign_B, scale=0.1).requires_grad


def test_a_wrong_answers_most_uncertain_token_and_its_only_one_are_spared():
    got = residual_advantages(*packed([(-1, [0.1, 4.0, 1.0]), (-1, [2.0])]), scale=0.1)
    assert got.tolist() == pytest.approx([-0.39, 0.0, -0.3, 0.0])


def test_a_microbatch_without_loss_tokens_has_no_advantages():
    got = residual_advantages(
        torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.tensor([-1]), scale=0.1
    )
    assert got.shape == (0,)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(UserError, match=r"residual\.scale=0"):
        ResidualConfig(scale=0.0)
