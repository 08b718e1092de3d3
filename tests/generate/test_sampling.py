"""Noise is a fixed function of its key and position, and inverting the CDF samples correctly."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from compass.errors import UserError
from compass.generate.sampling import check_sampling, sample_tokens, uniforms
from compass.generate.sequence import SampleKey
from compass.types import SamplingParams

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published generator, in unbounded integers."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(logits, u, *, temperature=1.0, top_k=0, top_p=1.0, truncated=None, greedy=True):
    """`sample_tokens` with the same parameters in every row."""
    rows = len(u)
    logits = torch.as_tensor(logits, dtype=torch.float32).expand(rows, -1)
    return sample_tokens(
        logits,
        temperature_B=torch.full((rows,), float(temperature)),
        top_k_B=torch.full((rows,), top_k),
        top_p_B=torch.full((rows,), float(top_p), dtype=torch.float64),
        uniforms_B=torch.as_tensor(u, dtype=torch.float64),
        truncated=(top_k > 0 or top_p < 1) if truncated is None else truncated,
        greedy=greedy,
    )


def grid(n: int) -> torch.Tensor:
    """n uniforms in the middles of n equal cells."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_uniforms_are_the_published_splitmix64() -> None:
    # First outputs for the state 1234567, as published with the algorithm's test vectors.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    got = uniforms(torch.full((3,), 1234567), torch.arange(3))
    assert got.tolist() == [(z >> 11) * 2.0**-53 for z in published]


def test_uniforms_match_unbounded_integers_for_any_key() -> None:
    keys = [0, 1, -1, (1 << 63) - 1, -(1 << 63), SampleKey.of(7, "p", 3).value]
    positions = [0, 1, 17, 40_959]
    for key in keys:
        got = uniforms(torch.full((len(positions),), key), torch.tensor(positions))
        states = [(key + (p + 1) * 0x9E3779B97F4A7C15) & MASK for p in positions]
        assert got.tolist() == [(splitmix64(s) >> 11) * 2.0**-53 for s in states]


def test_keys_differ_when_any_part_differs() -> None:
    parts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "1/a", 1), (11, "a", 1)]
    assert len({SampleKey.of(*part).value for part in parts}) == len(parts)


def test_keys_are_the_same_in_every_process_and_release() -> None:
    # blake2b is fixed by RFC 7693; a new value here would change every published run.
    assert SampleKey.of(0, "p0", 0).value == 7980368350200397892


def test_noise_of_neighbouring_samples_and_positions_is_uniform_and_uncorrelated() -> None:
    keys = torch.tensor([SampleKey.of(0, "p", sample).value for sample in range(200)])
    u = torch.stack([uniforms(keys, torch.full((200,), p)) for p in range(200)])
    counts = torch.histc(u, bins=100, min=0, max=1)
    chi_square = ((counts - 400) ** 2 / 400).sum().item()
    assert 55 < chi_square < 160  # 99 degrees of freedom: 99.9 % of draws
    for shift, dim in ((1, 0), (1, 1)):
        a = u.narrow(dim, 0, 199).flatten()
        b = u.narrow(dim, shift, 199).flatten()
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.02


def test_frequencies_follow_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20) * 1.5
    keys = torch.tensor([SampleKey.of(1, "p", sample).value for sample in range(20_000)])
    ids, logprobs = draw(logits, uniforms(keys, torch.zeros_like(keys)), temperature=0.7)
    expected = torch.softmax(logits / 0.7, dim=0)
    counts = torch.bincount(ids, minlength=20)
    chi_square = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum().item()
    assert chi_square < 43.8  # 19 degrees of freedom, 99.9 %
    torch.testing.assert_close(logprobs, expected.log()[ids])


def test_a_fine_grid_of_uniforms_reproduces_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    ids, _ = draw(logits, grid(1000))
    assert torch.bincount(ids).tolist() == [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (1, 1.0, [3]),
        (2, 1.0, [2, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.39, [3]),
        (0, 0.41, [2, 3]),
        (0, 0.7001, [1, 2, 3]),
        # Of the two that top-k leaves, 4/7 is the likelier: 0.5 is reached by it alone.
        (2, 0.5, [3]),
        (2, 0.6, [2, 3]),
        (0, 1e-60, [3]),
    ],
)
def test_truncation_keeps_and_renormalises(top_k, top_p, kept) -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ids, logprobs = draw(probs.log(), grid(4000), top_k=top_k, top_p=top_p)
    total = probs[kept].sum()
    assert sorted(set(ids.tolist())) == kept
    torch.testing.assert_close(logprobs, (probs / total).log()[ids])
    for token in kept:
        assert (ids == token).sum().item() == pytest.approx(4000 * probs[token] / total, abs=2)


def test_ties_under_truncation_go_to_the_lower_id() -> None:
    ids, _ = draw([0.0] * 6, grid(60), top_k=2)
    assert sorted(set(ids.tolist())) == [0, 1]


def test_greedy_takes_the_most_likely_token_and_reports_temperature_one() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    for truncated in (False, True):
        ids, logprobs = draw(logits, grid(5), temperature=0, top_k=1, truncated=truncated)
        assert ids.tolist() == [1] * 5
        expected = 3.0 - math.log(math.exp(1) + math.exp(2) + math.exp(3))
        assert logprobs.tolist() == pytest.approx([expected] * 5, abs=1e-6)


def test_a_token_of_zero_probability_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    edges = [0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53]
    ids, logprobs = draw(logits, edges)
    assert ids.tolist() == [1, 1, 3, 3]
    assert torch.isfinite(logprobs).all()
    # The largest uniform there is, on sums that round to either side of 1.
    torch.manual_seed(0)
    for _ in range(200):
        logits = torch.randn(100)
        logits[-1] = -torch.inf
        ids, _ = draw(logits, [1 - 2**-53])
        assert ids.item() < 99


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    rows = 32
    logits = torch.randn(rows, 50) * 2
    params = {
        "temperature_B": torch.rand(rows) + 0.3 * (torch.arange(rows) % 3 > 0),
        "top_k_B": torch.arange(rows) % 5,
        "top_p_B": 1 - 0.5 * torch.rand(rows) * (torch.arange(rows) % 2),
        "uniforms_B": torch.rand(rows, dtype=torch.float64),
    }
    params["temperature_B"][::7] = 0
    ids, logprobs = sample_tokens(logits, **params, truncated=True)
    order = torch.randperm(rows)
    shuffled = {name: value[order] for name, value in params.items()}
    ids_shuffled, logprobs_shuffled = sample_tokens(logits[order], **shuffled, truncated=True)
    assert torch.equal(ids_shuffled, ids[order])
    assert torch.equal(logprobs_shuffled, logprobs[order])
    for row in range(rows):
        one = {name: value[row : row + 1] for name, value in params.items()}
        ids_one, _ = sample_tokens(logits[row : row + 1], **one, truncated=True)
        assert ids_one.item() == ids[row]


def test_the_fast_path_equals_the_sorting_path() -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(64, 50), torch.rand(64)
    fast, slow = (draw(logits, u, truncated=truncated) for truncated in (False, True))
    assert torch.equal(fast[0], slow[0])
    assert torch.equal(fast[1], slow[1])


def test_no_rows_is_a_draw_of_nothing() -> None:
    ids, logprobs = draw(torch.zeros(0, 5), [])
    assert ids.shape == logprobs.shape == (0,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_completion_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
    ],
)
def test_parameters_without_meaning_are_refused_by_name(field, value) -> None:
    params = SamplingParams(**({"max_completion_tokens": 4} | {field: value}))
    with pytest.raises(UserError, match=f"{field}={value}"):
        check_sampling(params)


@pytest.mark.parametrize("temperature", [1e-40, 1e-7, 1e7, float("inf"), float("nan")])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(temperature) -> None:
    params = SamplingParams(max_completion_tokens=4, temperature=temperature)
    with pytest.raises(UserError, match=f"temperature={temperature} must be 0 .greedy. or from"):
        check_sampling(params)


@pytest.mark.parametrize("temperature", [0, 1e-6, 1, 1e6])
def test_at_any_other_temperature_a_token_with_its_log_probability_is_drawn(temperature) -> None:
    check_sampling(SamplingParams(max_completion_tokens=4, temperature=temperature))
    ids, logprobs = draw(torch.randn(50) * 1e4, grid(9), temperature=temperature)
    assert 0 <= ids.min() <= ids.max() < 50
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("size", [50, 40_000], ids=["one chunk", "a chunk a row"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.9), (5, 0.5)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_a_token_in_range_and_a_log_probability_of_nan(
    bad, temperature, top_k, top_p, size
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, size)
    logits[1, 7], logits[2] = bad, bad
    ids, logprobs = draw(logits, grid(4), temperature=temperature, top_k=top_k, top_p=top_p)
    assert 0 <= ids.min() <= ids.max() < size
    assert logprobs.isnan().tolist() == [False, True, True, False]
    for row in (0, 3):
        alone = draw(logits[row], grid(4)[row : row + 1], temperature=temperature, top_k=top_k)
        if top_p == 1:
            assert (ids[row], logprobs[row]) == (alone[0], alone[1])


def test_a_row_without_any_possible_token_is_not_finite_and_one_with_some_is() -> None:
    logits = torch.full((2, 9), -torch.inf)
    logits[1, 4] = 3.0
    ids, logprobs = draw(logits, grid(2))
    assert logprobs.isnan().tolist() == [True, False]
    assert (ids[1], logprobs[1]) == (4, 0.0)


def test_chunks_of_rows_are_drawn_as_one_batch_would_be() -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(40, 4096), torch.rand(40)  # more logits than one chunk holds
    ids, logprobs = draw(logits, u)
    for row in range(40):
        one = draw(logits[row], u[row : row + 1])
        assert ids[row] == one[0]
        assert logprobs[row] == one[1]


def test_promising_that_nothing_is_greedy_changes_nothing() -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(64, 50), torch.rand(64)
    careful, promised = (draw(logits, u, greedy=greedy) for greedy in (True, False))
    assert torch.equal(careful[0], promised[0])
    assert torch.equal(careful[1], promised[1])


@pytest.mark.parametrize(("top_k", "temperature"), [(0, 1.0), (5, 0.7), (5, 0.0)])
def test_no_number_is_read_while_drawing(top_k, temperature) -> None:
    # Fake tensors hold none: reading one, which on a device means waiting for it, raises.
    with FakeTensorMode():
        ids, logprobs = draw(
            torch.randn(40, 4096), torch.rand(40), top_k=top_k, temperature=temperature
        )
    assert ids.shape == logprobs.shape == (40,)
