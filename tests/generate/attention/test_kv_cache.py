"""Keys and values in E4M3: what is written, read, copied and paid for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.generate.attention.kv_cache import KVCache
from compass.generate.attention.paged_attention import PagedAttention, Span
from compass.generate.fp8.numbers import E4M3, dequantise, quantise
from compass.models.specs import SPECS
from tests.tiny_batch import SPEC

BLOCK_SIZE = 4
HEADS = (SPEC.num_kv_heads, SPEC.head_dim)


def make_cache(num_blocks: int, dtype: torch.dtype = E4M3) -> KVCache:
    return KVCache(SPEC, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device="cpu")


def keys_and_values(num_tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(num_tokens, SPEC.num_kv_heads, 1, generator=generator).exp()
    k, v = (torch.randn(num_tokens, *HEADS, generator=generator) * spread for _ in range(2))
    return k, v


def rounded(x: torch.Tensor) -> torch.Tensor:
    return dequantise(*quantise(x))


def test_every_slot_and_head_has_a_scale_of_its_own() -> None:
    cache = make_cache(3)
    k, v = keys_and_values(2)
    cache.write(1, torch.tensor([7, 2]), k, v)
    for scales, x in ((cache.key_scales, k), (cache.value_scales, v)):
        assert len(scales) == SPEC.num_layers
        assert scales[1].shape == (3, BLOCK_SIZE, SPEC.num_kv_heads)
        assert scales[1].dtype == torch.float32
        torch.testing.assert_close(scales[1][1, 3], x[0].abs().amax(dim=-1) / 448)
        torch.testing.assert_close(scales[1][0, 2], x[1].abs().amax(dim=-1) / 448)
        assert scales[1].count_nonzero() == 2 * SPEC.num_kv_heads
        assert scales[0].count_nonzero() == 0
    assert make_cache(3, torch.float32).key_scales == []


@settings(max_examples=40)
@given(
    num_tokens=st.integers(0, 12),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([E4M3, torch.float32]),
)
def test_what_is_read_is_what_writing_returned(num_tokens, seed, dtype) -> None:
    cache = make_cache(3, dtype)
    slots = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:num_tokens]
    k, v = keys_and_values(num_tokens, seed)
    returned = cache.write(2, slots, k, v)
    read = cache.read(2, torch.tensor([2, 0, 1]))
    for got, back, x in zip(returned, read, (k, v), strict=True):
        expected = rounded(x) if dtype == E4M3 else x
        assert torch.equal(got, expected)
        by_slot = back[[1, 2, 0]].flatten(0, 1)  # the blocks in their own order
        assert torch.equal(by_slot[slots], expected)
        assert by_slot.count_nonzero() == expected.count_nonzero()


def test_copied_blocks_read_alike() -> None:
    cache = make_cache(4)
    k, v = keys_and_values(8)
    for layer in range(SPEC.num_layers):
        cache.write(layer, torch.arange(8), k + layer, v - layer)
    cache.copy_blocks([0, 1], [3, 2])
    for layer in range(SPEC.num_layers):
        keys, values = cache.read(layer, torch.tensor([3, 2]))
        assert torch.equal(keys.flatten(0, 1), rounded(k + layer))
        assert torch.equal(values.flatten(0, 1), rounded(v - layer))


def test_a_block_costs_what_it_holds() -> None:
    cache = make_cache(5)
    held = (*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales, cache.routes)
    assert sum(x.nbytes for x in held) == 5 * KVCache.bytes_per_block(SPEC, BLOCK_SIZE, E4M3)
    large = SPECS["235b-a22b"]
    routes = large.num_moe_layers * large.top_k
    scales = 2 * 4 * large.num_layers * large.num_kv_heads
    assert KVCache.bytes_per_block(large, 1, E4M3) == 96_256 + scales + routes


@pytest.mark.parametrize("cuts", [[9], [4, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 8, 9]])
def test_attention_does_not_depend_on_how_a_prompt_was_cut(cuts) -> None:
    """Nine tokens fed at once or in chunks: the keys a token meets are rounded in either case."""
    k, v = keys_and_values(9)
    q = torch.randn(9, SPEC.num_heads, SPEC.head_dim, generator=torch.Generator().manual_seed(5))
    cache = make_cache(3)
    pieces = []
    for start, end in zip([0, *cuts], cuts, strict=False):
        attention = PagedAttention(
            cache, [Span([2, 0, 1], start, end - start)], torch.device("cpu")
        )
        pieces.append(attention.attend(0, q[start:end], k[start:end], v[start:end], 0.3))
    groups = SPEC.num_heads // SPEC.num_kv_heads
    expected = torch.empty_like(q)
    for t in range(9):
        for head in range(SPEC.num_heads):
            keys, values = (rounded(x)[: t + 1, head // groups] for x in (k, v))
            expected[t, head] = ((keys @ q[t, head]) * 0.3).softmax(dim=0) @ values
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=1e-5)
