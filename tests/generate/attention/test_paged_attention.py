"""Paged attention against the loop that its equation describes, on caches full of other tokens."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from compass.generate.attention.kv_cache import KVCache
from compass.generate.attention.paged_attention import (
    ROWS_AT_ONCE,
    PagedAttention,
    Span,
    bucket_sizes,
)
from compass.generate.fp8.numbers import E4M3
from compass.models.specs import ModelSpec
from tests.cuda_on_cpu import calls, cuda_on_cpu

SPEC = ModelSpec(
    vocab_size=8,
    hidden_size=8,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=8,
    moe_intermediate_size=8,
    num_experts=300,
    top_k=3,
)
BLOCK_SIZE = 4
SCALE = 0.37
CPU = torch.device("cpu")


def make_cache(num_blocks: int, spec: ModelSpec = SPEC, dtype=torch.float32) -> KVCache:
    return KVCache(spec, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=CPU)


def attend_by_loop(q_nh, k_tgh, v_tgh, position):
    """One query at `position` over tokens 0..position of its sequence, head by head."""
    out = torch.zeros_like(q_nh)
    for head in range(6):
        group = head // 3
        scores = k_tgh[: position + 1, group] @ q_nh[head] * SCALE
        weights = torch.exp(scores - scores.max())
        out[head] = (weights / weights.sum()) @ v_tgh[: position + 1, group]
    return out


spans_strategy = st.lists(st.tuples(st.integers(0, 21), st.integers(1, 9)), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(pieces=spans_strategy, seed=st.integers(0, 1000))
def test_any_mix_of_decodes_and_chunks_equals_the_loop(pieces, seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    cache = make_cache(64)
    for layer in range(2):  # whatever earlier sequences left behind
        cache.keys[layer].copy_(randn(*cache.keys[layer].shape) * 5)
        cache.values[layer].copy_(randn(*cache.values[layer].shape) * 5)
    shuffled = torch.randperm(64, generator=generator).tolist()
    spans, histories = [], []
    for start, num_tokens in pieces:
        table = [shuffled.pop() for _ in range(-(-(start + num_tokens) // BLOCK_SIZE))]
        spans.append(Span(table, start, num_tokens))
        histories.append([(randn(start, 2, 4), randn(start, 2, 4)) for _ in range(2)])
    for layer in range(2):
        for (table, start, _), history in zip(spans, histories, strict=True):
            slots = torch.tensor([table[t // 4] * 4 + t % 4 for t in range(start)]).long()
            cache.write(layer, slots, *history[layer])

    T = sum(num_tokens for _, num_tokens in pieces)
    attention = PagedAttention(cache, spans, CPU)
    for layer in range(2):
        q, k, v = randn(T, 6, 4), randn(T, 2, 4), randn(T, 2, 4)
        out = attention.attend(layer, q, k, v, SCALE)
        row = 0
        for (start, num_tokens), history in zip(pieces, histories, strict=True):
            keys = torch.cat([history[layer][0], k[row : row + num_tokens]])
            values = torch.cat([history[layer][1], v[row : row + num_tokens]])
            for i in range(num_tokens):
                expected = attend_by_loop(q[row + i], keys, values, start + i)
                torch.testing.assert_close(out[row + i], expected, rtol=0, atol=1e-5)
            row += num_tokens


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple) else (out,)
        for x in made:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def continue_a_prompt(start: int, num_tokens: int, dtype: torch.dtype, kv_dtype: torch.dtype):
    """A chunk behind `start` tokens: what it got, what it should have, and the largest tensor."""
    noise = torch.Generator().manual_seed(start)
    end = start + num_tokens
    q, k, v = (torch.randn((end, n, 4), generator=noise).to(dtype) for n in (6, 2, 2))
    table = torch.randperm(-(-end // BLOCK_SIZE), generator=noise).tolist()
    cache = make_cache(len(table), dtype=kv_dtype)
    first = PagedAttention(cache, [Span(table, 0, start)], CPU)
    cache.write(0, first.slots_T, k[:start], v[:start])
    with Largest() as largest:
        got = PagedAttention(cache, [Span(table, start, num_tokens)], CPU).attend(
            0, q[start:], k[start:], v[start:], SCALE
        )
    k_end, v_end = (
        x.flatten(0, 1)[:end].float() for x in cache.read(0, torch.tensor(table, dtype=torch.int32))
    )
    last = attend_by_loop(q[-1].float(), k_end, v_end, end - 1)
    middle = num_tokens // 2
    inner = attend_by_loop(q[start + middle].float(), k_end, v_end, start + middle)
    return got[[middle, -1]].float(), torch.stack([inner, last]), largest.elements


@pytest.mark.parametrize("on_cuda", [False, True])
def test_a_long_chunk_in_float32_holds_the_scores_of_a_part_of_it(on_cuda) -> None:
    with cuda_on_cpu() if on_cuda else nullcontext():
        got, expected, largest = continue_a_prompt(1500, 1100, torch.float32, torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    heads, keys = 6, 2600
    assert largest <= max(heads * ROWS_AT_ONCE, 1100) * keys


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, E4M3])
@pytest.mark.parametrize(("start", "num_tokens"), [(30, 2), (37, 11), (1500, 1100)])
def test_a_chunk_in_bfloat16_on_cuda_holds_no_scores(start, num_tokens, kv_dtype) -> None:
    with cuda_on_cpu():
        got, expected, _ = continue_a_prompt(start, num_tokens, torch.bfloat16, kv_dtype)
        end = start + num_tokens
        assert [call[3:] for call in calls] == [(num_tokens, end)]
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_a_step_without_tokens_attends_to_nothing() -> None:
    cache = make_cache(2)
    before = cache.keys[0].clone()
    q, k = torch.zeros(0, 6, 4), torch.zeros(0, 2, 4)
    assert PagedAttention(cache, [], CPU).attend(0, q, k, k, SCALE).shape == (0, 6, 4)
    assert torch.equal(cache.keys[0], before)


def test_routes_come_back_unsigned_and_in_order_for_more_than_256_experts() -> None:
    cache = make_cache(6)
    routes = torch.randint(0, 300, (10, SPEC.num_moe_layers, 3))
    routes[0, 0, 0] = 299
    attention = PagedAttention(cache, [Span([4, 1, 3], 0, 10)], CPU)
    cache.write_routes(attention.slots_T, routes)
    [read] = cache.read_routes([[4, 1, 3]], [9])
    assert read.dtype == torch.uint16
    assert torch.equal(read.long(), routes[:9])
    several = cache.read_routes([[1], [4, 1, 3], [0, 2]], [2, 10, 8])
    assert torch.equal(several[0].long(), routes[4:6])
    assert torch.equal(several[1].long(), routes)
    assert not several[2].long().any()


@pytest.mark.parametrize(
    ("num_experts", "dtype"), [(256, torch.uint8), (257, torch.uint16), (0, torch.uint8)]
)
def test_routes_are_stored_in_the_smallest_unsigned_type(num_experts, dtype) -> None:
    spec = ModelSpec(
        vocab_size=8,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_experts=num_experts,
        top_k=2 if num_experts else 0,
    )
    cache = make_cache(2, spec)
    assert cache.read_routes([[1]], [3])[0].dtype == dtype
    stored = sum(x.nbytes for x in (*cache.keys, *cache.values, cache.routes))
    assert stored == 2 * KVCache.bytes_per_block(spec, BLOCK_SIZE, torch.float32)


def test_copying_blocks_copies_keys_values_and_routes() -> None:
    cache = make_cache(5)
    attention = PagedAttention(cache, [Span([0, 1], 0, 8)], CPU)
    k, v = torch.randn(8, 2, 4), torch.randn(8, 2, 4)
    routes = torch.randint(0, 300, (8, 2, 3))
    for layer in range(2):
        cache.write(layer, attention.slots_T, k + layer, v + layer)
    cache.write_routes(attention.slots_T, routes)
    cache.copy_blocks([1, 0], [3, 4])
    for layer in range(2):
        keys, values = cache.read(layer, torch.tensor([4, 3]))
        assert torch.equal(keys.flatten(0, 1), k + layer)
        assert torch.equal(values.flatten(0, 1), v + layer)
    assert torch.equal(cache.read_routes([[4, 3]], [8])[0].long(), routes)


@given(num_blocks=st.lists(st.integers(1, 200), max_size=60), most=st.integers(1, 3000))
def test_buckets_cover_every_decode_and_waste_little(num_blocks, most) -> None:
    ordered = sorted(num_blocks)
    sizes = bucket_sizes(ordered, most)
    assert sum(sizes) == len(ordered)
    assert all(size > 0 for size in sizes)
    first = 0
    for size in sizes:
        members = ordered[first : first + size]
        assert sum(max(members) - n for n in members) <= 48
        assert max(members) * size <= most or size == 1
        first += size


def test_decodes_of_one_length_share_a_bucket_up_to_its_size() -> None:
    assert bucket_sizes([7] * 128, 7 * 128) == [128]
    assert bucket_sizes([7] * 128, 7 * 50) == [50, 50, 28]
    assert bucket_sizes([1] * 60 + [100] * 3, 10_000) == [60, 3]
