"""On a CUDA device: products of bfloat16 into float32, and chunks of prompts over the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compass.generate.attention.kv_cache import KVCache
from compass.generate.attention.paged_attention import PagedAttention, Span
from compass.models.layers.products import wide_linear
from compass.models.layers.vocabulary import score_targets
from tests.generate.attention.test_paged_attention import SPEC
from tests.models.layers.test_products import (
    BF16_STEP,
    gradients_in_float64,
    head_with_much_in_common,
    normal,
    relative_error,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_rows", [0, 1, 300])
def test_a_linear_and_its_gradients_are_those_of_float64(num_rows) -> None:
    inputs = [
        x.cuda().bfloat16().requires_grad_()
        for x in (normal(num_rows, 256, seed=0), normal(512, 256, seed=1))
    ]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = wide_linear(*inputs), exact[0] @ exact[1].T
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = normal(num_rows, 512, seed=2).cuda()
    got = torch.autograd.grad(out, inputs, upstream)
    for one, other in zip(
        got, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=BF16_STEP, atol=1e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_all_classes_share_cancels_from_the_gradient_of_scores(temperature) -> None:
    x, weight, targets = (y.cuda() for y in head_with_much_in_common())
    inputs = [y.bfloat16().requires_grad_() for y in (x, weight[:496])]
    scores = score_targets(*inputs, targets, temperature)
    upstream = normal(60, seed=6).cuda()
    got = torch.autograd.grad(scores.logprobs, inputs, upstream)
    expected = gradients_in_float64(*inputs, targets, temperature, upstream)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < BF16_STEP / 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_chunk_behind_earlier_tokens_equals_the_cpus(dtype, tolerance) -> None:
    spec = replace(SPEC, head_dim=32)
    start, end = 37, 900
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((end, n, 32), generator=noise).to(dtype) for n in (6, 2, 2))
    table = torch.randperm(57, generator=noise).tolist()
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        cache = KVCache(spec, num_blocks=57, block_size=16, dtype=dtype, device=device)
        on_device = [x.to(device) for x in (q, k, v)]
        for first, last in ((0, start), (start, end)):
            spans = [Span(table, first, last - first)]
            chunk = [x[first:last] for x in on_device]
            out = PagedAttention(cache, spans, device).attend(0, *chunk, 0.2)
        found.append(out.cpu().float())
    assert (found[1] - found[0]).norm() <= tolerance * found[0].norm()
