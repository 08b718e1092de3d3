"""What the paged-decode kernel must satisfy, on any device.

On a machine without one, Triton interprets kernels on the CPU, but only in a process that was
started for it: `python -m tests.generate.attention.paged_decode_cases` with TRITON_INTERPRET=1
runs them all and prints their outcomes as JSON. `test_paged_decode.py` does that; `tests/gpu` runs
the same cases compiled, on the device.

Shape legend: B sequences, N query heads, G key heads, H head width, P blocks of a table, L tokens
of one sequence.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compass.distributed import ParallelConfig, init_topology
from compass.generate.attention.paged_decode import SPLIT_TOKENS, paged_decode
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.types import SamplingParams
from tests.tiny_batch import SPEC as TINY

SCALE = 0.1
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""By the type of the queries, which is the type of the result."""


@dataclass(frozen=True, kw_only=True)
class Pages:
    """A cache full of random numbers, and tables into it."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    blocks_BP: Tensor
    lengths_B: Tensor

    @staticmethod
    def random(
        lengths: list[int], G: int, H: int, block_size: int, dtype: torch.dtype, seed: int
    ) -> Pages:
        """Every sequence has pages of its own, in no order, and each cache a page to spare."""
        draw = torch.Generator().manual_seed(seed)
        width = max(-(-length // block_size) for length in lengths) or 1
        num_blocks = len(lengths) * width + 1
        keys, values = (torch.randn((num_blocks, block_size, G, H), generator=draw) for _ in "kv")
        scales: list[Tensor | None] = [None, None]
        if dtype == torch.float8_e4m3fn:
            scales = [torch.rand((num_blocks, block_size, G), generator=draw) + 0.5 for _ in "kv"]
        table = torch.randperm(num_blocks, generator=draw)[: len(lengths) * width]
        return Pages(
            keys=keys.to(dtype),
            values=values.to(dtype),
            key_scales=scales[0],
            value_scales=scales[1],
            blocks_BP=table.view(len(lengths), width).int(),
            lengths_B=torch.tensor(lengths, dtype=torch.int32),
        )

    def gathered(self, b: int) -> tuple[Tensor, Tensor]:
        """[L, G, H] float32 keys and values of one sequence."""
        length = int(self.lengths_B[b])
        found = []
        for pages, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            x = pages[self.blocks_BP[b].long()].flatten(0, 1)[:length].float()
            if scales is not None:
                x = x * scales[self.blocks_BP[b].long()].flatten(0, 1)[:length, :, None]
            found.append(x)
        return found[0], found[1]


def run(q_BNH: Tensor, pages: Pages, device: str, max_length: int | None = None) -> Tensor:
    """The kernel's answer, on the CPU."""
    key_scales, value_scales = (
        None if x is None else x.to(device) for x in (pages.key_scales, pages.value_scales)
    )
    out_BNH = paged_decode(
        q_BNH.to(device),
        pages.keys.to(device),
        pages.values.to(device),
        pages.blocks_BP.to(device),
        pages.lengths_B.to(device),
        max_length=int(pages.lengths_B.max()) if max_length is None else max_length,
        scale=SCALE,
        key_scales=key_scales,
        value_scales=value_scales,
    )
    return out_BNH.cpu()


def gather_and_attend(q_BNH: Tensor, pages: Pages) -> Tensor:
    """The same by index and `scaled_dot_product_attention` in float32, one sequence at a time."""
    out_BNH = torch.zeros_like(q_BNH, dtype=torch.float32)
    for b in range(len(q_BNH)):
        k_LGH, v_LGH = pages.gathered(b)
        if len(k_LGH):
            out_BNH[b] = F.scaled_dot_product_attention(
                q_BNH[b, :, None].float()[None],
                k_LGH.transpose(0, 1)[None],
                v_LGH.transpose(0, 1)[None],
                scale=SCALE,
                enable_gqa=True,
            )[0, :, 0]
    return out_BNH.to(q_BNH.dtype)


LENGTH = st.one_of(
    st.integers(0, 40), st.sampled_from([SPLIT_TOKENS - 1, SPLIT_TOKENS, SPLIT_TOKENS + 1, 700])
)


def random_shapes_equal_gather_and_sdpa(device: str, query_dtype: torch.dtype) -> None:
    """Any lengths (0 and 1 too), group sizes, head widths, page sizes and cache types."""

    @settings(max_examples=20, deadline=None, database=None, derandomize=True)
    @given(
        lengths=st.lists(LENGTH, min_size=1, max_size=4),
        G=st.integers(1, 3),
        repeats=st.sampled_from([1, 2, 3, 8, 17]),
        H=st.sampled_from([2, 20, 64, 128]),
        block_size=st.sampled_from([1, 3, 7, 16, 64]),
        cache_dtype=st.sampled_from(
            [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
        ),
        seed=st.integers(0, 1000),
    )
    def check(lengths, G, repeats, H, block_size, cache_dtype, seed) -> None:
        pages = Pages.random(lengths, G, H, block_size, cache_dtype, seed)
        draw = torch.Generator().manual_seed(seed)
        q_BNH = torch.randn((len(lengths), G * repeats, H), generator=draw).to(query_dtype)
        tolerance = TOLERANCE[query_dtype]
        torch.testing.assert_close(
            run(q_BNH, pages, device),
            gather_and_attend(q_BNH, pages),
            rtol=tolerance,
            atol=tolerance,
        )

    check()


def a_sequence_is_the_same_bit_for_bit_in_any_batch(device: str, query_dtype: torch.dtype) -> None:
    """Alone, beside longer ones, and under a bound on lengths that is far too high."""
    lengths = [1, SPLIT_TOKENS, 5, SPLIT_TOKENS * 2 + 3, 0]
    for cache_dtype in (torch.float32, torch.float8_e4m3fn):
        pages = Pages.random(lengths, 2, 32, 16, cache_dtype, seed=1)
        q_BNH = torch.randn((5, 6, 32), generator=torch.Generator().manual_seed(1))
        q_BNH = q_BNH.to(query_dtype)
        together = run(q_BNH, pages, device)
        assert torch.equal(together, run(q_BNH, pages, device, max_length=17 * SPLIT_TOKENS))
        for b in range(5):
            alone = Pages(
                keys=pages.keys,
                values=pages.values,
                key_scales=pages.key_scales,
                value_scales=pages.value_scales,
                blocks_BP=pages.blocks_BP[b : b + 1],
                lengths_B=pages.lengths_B[b : b + 1],
            )
            assert torch.equal(run(q_BNH[b : b + 1], alone, device)[0], together[b])


def nothing_behind_the_end_is_read(device: str, query_dtype: torch.dtype) -> None:
    """Dead slots hold NaN, and entries behind a sequence's last block name no block at all."""
    pages = Pages.random([5, 0, 40], 2, 16, 4, torch.float32, seed=2)
    q_BNH = torch.randn((3, 4, 16), generator=torch.Generator().manual_seed(2)).to(query_dtype)
    expected = run(q_BNH, pages, device)
    live = torch.zeros(pages.keys.shape[:2], dtype=torch.bool)
    blocks_BP = pages.blocks_BP.clone()
    for b, length in enumerate(pages.lengths_B.tolist()):
        for position in range(length):
            live[pages.blocks_BP[b, position // 4], position % 4] = True
        blocks_BP[b, -(-length // 4) :] = 2**30
    poisoned = Pages(
        keys=pages.keys.masked_fill(~live[..., None, None], torch.nan),
        values=pages.values.masked_fill(~live[..., None, None], torch.nan),
        key_scales=None,
        value_scales=None,
        blocks_BP=blocks_BP,
        lengths_B=pages.lengths_B,
    )
    assert not expected.isnan().any()
    assert torch.equal(run(q_BNH, poisoned, device), expected)


def every_e4m3_number_is_decoded_exactly(device: str, query_dtype: torch.dtype) -> None:
    """One token's attention is its value: all 254 numbers that are not NaN."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = torch.where(numbers.float().isnan(), 0.0, numbers.float()).to(torch.float8_e4m3fn)
    pages = Pages(
        keys=numbers.view(1, 1, 1, 256),
        values=numbers.view(1, 1, 1, 256),
        key_scales=torch.full((1, 1, 1), 0.01),
        value_scales=torch.ones(1, 1, 1),
        blocks_BP=torch.zeros(1, 1, dtype=torch.int32),
        lengths_B=torch.ones(1, dtype=torch.int32),
    )
    q_BNH = torch.zeros(1, 1, 256, dtype=query_dtype)
    assert torch.equal(run(q_BNH, pages, device)[0, 0].float(), numbers.float())


def no_sequences_need_no_device(device: str, query_dtype: torch.dtype) -> None:
    """A rank whose sequences ended still runs every layer, on none."""
    pages = Pages.random([1], 1, 8, 4, torch.float32, seed=0)
    none = Pages(
        keys=pages.keys,
        values=pages.values,
        key_scales=None,
        value_scales=None,
        blocks_BP=pages.blocks_BP[:0],
        lengths_B=pages.lengths_B[:0],
    )
    q_BNH = torch.zeros(0, 2, 8, dtype=query_dtype)
    assert run(q_BNH, none, device, max_length=0).shape == (0, 2, 8)


def a_generator_writes_what_it_writes_by_gathering(device: str, query_dtype: torch.dtype) -> None:
    """Whole completions, by decode steps and by steps that mix decodes with chunks of prompts."""
    topology = init_topology(ParallelConfig(device="cuda" if device == "cuda" else "cpu"))
    policy = build_policy(TINY, topology, PolicyConfig(), lambda p: init_policy(p, 0))
    sampling = SamplingParams(max_completion_tokens=7)
    requests = [
        Request(prompt_id=f"{n}", prompt_token_ids=[n] * n, num_samples=2, sampling=sampling)
        for n in (1, 9)
    ]
    written = []
    for attention in ("gather", "triton"):
        config = GeneratorConfig(
            attention=attention, block_size=3, max_num_seqs=4, max_tokens_per_step=6
        )
        completions = Generator(policy, config, topology).generate(requests, seed=1)
        written.append(sorted(completions, key=lambda c: (c.prompt_id, c.sample)))
    for gathered, paged in zip(*written, strict=True):
        assert list(paged.token_ids) == list(gathered.token_ids)
        assert torch.equal(paged.routed_experts, gathered.routed_experts)
        torch.testing.assert_close(paged.logprobs, gathered.logprobs, rtol=0, atol=1e-4)


CASES = {
    case.__name__: case
    for case in (
        random_shapes_equal_gather_and_sdpa,
        a_sequence_is_the_same_bit_for_bit_in_any_batch,
        nothing_behind_the_end_is_read,
        every_e4m3_number_is_decoded_exactly,
        no_sequences_need_no_device,
        a_generator_writes_what_it_writes_by_gathering,
    )
}

if __name__ == "__main__":
    outcomes = {}
    for name, case in CASES.items():
        try:
            # Not in bfloat16: the interpreter (3.6) multiplies its bit patterns.
            for query_dtype in (torch.float32, torch.float16):
                case("cpu", query_dtype)
            outcomes[name] = "passed"
        except Exception:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))
