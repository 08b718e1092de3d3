"""Decode steps on buffers that stay say what any other step says, recorded or not."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from compass.generate.attention.decode_backends import GatherDecode
from compass.generate.attention.decode_step import DecodeStep
from compass.generate.attention.graphs import DecodeGraphs, GraphShape
from compass.generate.attention.kv_cache import KVCache
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.model_runner import ModelRunner
from compass.generate.scheduler import Chunk
from compass.generate.sequence import Request
from compass.types import SamplingParams
from tests.generate.tiny_policy import TINY, make_policy

CPU = torch.device("cpu")
CONFIG = GeneratorConfig(block_size=4, num_blocks=16, max_num_seqs=6, max_tokens_per_step=20)


class ReplayedInPlace:
    """Records as a device does: what is replayed reads and writes the memory it was recorded with.

    The result of a recording is one tensor, overwritten whenever it is replayed.
    """

    def __call__(self, forward):
        result = forward().clone()

        def replay():
            result.copy_(forward())
            return result

        return replay


def make_requests() -> list[Request]:
    """Groups that share prompts; prompts of one token and longer than a step; more samples than
    seats and, while all run, more tokens than blocks."""
    sampling = SamplingParams(max_completion_tokens=25, temperature=0.9, stop_token_ids=(3, 28))
    return [
        Request(
            prompt_id=f"p{i}",
            prompt_token_ids=[(7 * i + 3 * j) % 61 for j in range(length)],
            num_samples=num_samples,
            sampling=sampling,
        )
        for i, (length, num_samples) in enumerate([(5, 4), (1, 2), (23, 2), (8, 1)])
    ]


def with_decode_step(
    policy, topology, graphs: DecodeGraphs | None, config: GeneratorConfig = CONFIG
) -> Generator:
    """A generator whose cache has one block more than its scheduler knows of."""
    generator = Generator(policy, config, topology)
    model, block_size, rows = generator.view.model, config.block_size, config.max_num_seqs
    cache = KVCache(
        model.spec,
        num_blocks=generator.num_blocks + 1,
        block_size=block_size,
        dtype=torch.float32,
        device=CPU,
    )
    decode_step = DecodeStep(model, cache, GatherDecode, max_rows=rows, device=CPU, graphs=graphs)
    generator.runner = ModelRunner(model, cache, CPU, decode_step=decode_step)
    generator.runner.keeps_cache = False  # as on the devices that record steps
    return generator


def make_graphs(max_rows: int = CONFIG.max_num_seqs) -> DecodeGraphs:
    return DecodeGraphs(ReplayedInPlace, max_rows=max_rows, max_length=TINY.max_seq_len)


@pytest.mark.parametrize("recorded", [False, True])
def test_completions_are_those_of_ordinary_steps(recorded, policy, topology) -> None:
    plain = Generator(policy, CONFIG, topology)
    stepped = with_decode_step(policy, topology, make_graphs() if recorded else None)
    expected = {(c.prompt_id, c.sample): c for c in plain.generate(make_requests(), seed=3)}
    assert plain.num_preemptions > 0
    got = {(c.prompt_id, c.sample): c for c in stepped.generate(make_requests(), seed=3)}
    assert got.keys() == expected.keys()
    for name, completion in got.items():
        assert list(completion.token_ids) == list(expected[name].token_ids)
        assert torch.equal(completion.routed_experts, expected[name].routed_experts)
        torch.testing.assert_close(completion.logprobs, expected[name].logprobs, rtol=0, atol=1e-5)


def test_steps_of_few_forms_are_recorded_once_while_a_cache_lives(policy, topology) -> None:
    graphs = make_graphs()
    generator = with_decode_step(policy, topology, graphs)
    for num_batches in (1, 2):
        list(generator.generate(make_requests(), seed=num_batches))
        # Batches of 1, 2, 3-4 and 5-6; every context here rounds up to the whole.
        assert graphs.num_recorded == 4 * num_batches


@dataclass
class Fed:
    """What a decode step asks of a sequence."""

    token_ids: list[int]
    block_table: list[int]


def decoding(tokens: list[int], table: list[int], start: int) -> Chunk:
    return Chunk(Fed(tokens, table), start, 1)


def test_rows_without_a_sequence_write_to_the_spare_block_alone(policy) -> None:
    cache = KVCache(TINY, num_blocks=9, block_size=4, dtype=torch.float32, device=CPU)
    for paged in (*cache.keys, *cache.values):
        paged.uniform_()
    before = [paged.clone() for paged in (*cache.keys, *cache.values, cache.routes)]
    step = DecodeStep(policy, cache, GatherDecode, max_rows=6, device=CPU, graphs=make_graphs())
    # Five rows of a step of six; the row that is left has held a table before.
    six = [decoding([1, 2, 3], [row], 2) for row in range(6)]
    step.run(six, GraphShape(6, 3))
    for paged, old in zip((*cache.keys, *cache.values, cache.routes), before, strict=True):
        paged.copy_(old)
    assert step.run(six[:5], GraphShape(5, 3)).shape == (5, TINY.vocab_size)
    written = [block * 4 + 2 for block in range(5)]
    for paged, old in zip((*cache.keys, *cache.values, cache.routes), before, strict=True):
        slots = paged if paged is cache.routes else paged.flatten(0, 1)
        old_slots = old if paged is cache.routes else old.flatten(0, 1)
        changed = (slots != old_slots).flatten(1).any(dim=1).nonzero().squeeze(1).tolist()
        assert set(changed) <= {*written, 8 * 4}
    keys, old_keys = cache.keys[0].flatten(0, 1), before[0].flatten(0, 1)
    assert all((keys[slot] != old_keys[slot]).any() for slot in (*written, 8 * 4))


def test_a_row_follows_its_table_as_it_grows_and_changes_hands(policy) -> None:
    cache = KVCache(TINY, num_blocks=9, block_size=4, dtype=torch.float32, device=CPU)
    step = DecodeStep(policy, cache, GatherDecode, max_rows=2, device=CPU, graphs=None)
    first, second = decoding([1] * 9, [4], 3), decoding([2] * 9, [6, 2], 4)
    step.run([first, second], GraphShape(2, 5))
    assert step.inputs.tables(2, 2).tolist() == [[4, 0], [6, 2]]
    first.sequence.block_table.append(7)
    step.run([Chunk(first.sequence, 4, 1), Chunk(second.sequence, 5, 1)], GraphShape(2, 6))
    assert step.inputs.tables(2, 2).tolist() == [[4, 7], [6, 2]]
    assert step.inputs.tokens(2).tolist() == [1, 2]
    assert step.inputs.positions(2).tolist() == [4, 5]
    # The first sequence ends, and a new one takes a block that it gave back.
    first.sequence.block_table.clear()
    third = decoding([5, 6], [7], 1)
    step.run([Chunk(second.sequence, 6, 1), third], GraphShape(2, 7))
    assert step.inputs.tables(2, 2).tolist() == [[6, 2], [7, 2]]
    assert step.inputs.tokens(2).tolist() == [2, 6]


def test_no_number_is_read_between_inputs_and_logits() -> None:
    # Fake tensors hold none: reading one, which on a device means waiting for it and makes
    # recording impossible, raises. In bfloat16, the only type their grouped_mm knows.
    policy = make_policy(replace(TINY, max_seq_len=32), 0).bfloat16()
    cache = KVCache(policy.spec, num_blocks=9, block_size=4, dtype=torch.bfloat16, device=CPU)
    step = DecodeStep(policy, cache, GatherDecode, max_rows=4, device=CPU, graphs=None)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        assert step._forward(3, 8).shape == (3, TINY.vocab_size)
