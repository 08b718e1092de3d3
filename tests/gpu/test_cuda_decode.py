"""On a CUDA device: decode kernels, graphs, the seed contract, and no waiting in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from compass.distributed import ParallelConfig, Topology, init_topology
from compass.errors import UserError
from compass.generate.attention.decode_backends import BACKENDS, DecodeTables, choose_attention
from compass.generate.attention.graphs import GraphShape
from compass.generate.attention.kv_cache import KVCache
from compass.generate.block_manager import BlockManager
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.scheduler import Scheduler
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy, reshard
from compass.models.policy import Policy
from compass.models.specs import SPECS
from compass.types import Completion, SamplingParams
from tests.generate.attention import paged_decode_cases

pytestmark = pytest.mark.gpu

SPEC = SPECS["debug"]
EXPERTS_NEED_HOPPER = "grouped matmuls ask the host before compute capability 9.0"


@pytest.fixture(scope="module")
def topology() -> Topology:
    return init_topology(ParallelConfig(device="cuda"))


@pytest.fixture(scope="module")
def policy(topology) -> Policy:
    config = PolicyConfig(dtype="bfloat16")
    return build_policy(SPEC, topology, config, lambda policy: init_policy(policy, 0))


@pytest.fixture(scope="module")
def hopper() -> None:
    assert torch.cuda.get_device_capability() >= (9, 0), EXPERTS_NEED_HOPPER


def requests(num_prompts: int, num_samples: int, max_tokens: int = 40) -> list[Request]:
    return [
        Request(
            prompt_id=f"{i}",
            prompt_token_ids=[(7 * i + j) % SPEC.vocab_size for j in range(5 + i)],
            num_samples=num_samples,
            sampling=SamplingParams(max_completion_tokens=max_tokens),
        )
        for i in range(num_prompts)
    ]


def write(generator: Generator, wanted: list[Request]) -> dict[tuple[str, int], Completion]:
    return {(c.prompt_id, c.sample): c for c in generator.generate(wanted, seed=0)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", paged_decode_cases.CASES.values(), ids=lambda c: c.__name__)
def test_our_kernel(case, dtype) -> None:
    case("cuda", dtype)


def kernels_that_run_here() -> list[str]:
    found = []
    for name in ("triton", "varlen", "flash"):
        with contextlib.suppress(UserError):
            found.append(
                choose_attention(
                    name,
                    device=torch.device("cuda"),
                    kv_dtype=torch.bfloat16,
                    block_size=256,
                )
            )
    return found


def test_every_kernel_that_runs_here_agrees_with_gathering() -> None:
    torch.manual_seed(0)
    spec = replace(SPECS["30b-a3b"], num_layers=1)
    cache = KVCache(spec, num_blocks=20, block_size=256, dtype=torch.bfloat16, device="cuda")
    for pages in (cache.keys[0], cache.values[0]):
        pages.normal_()
    lengths = [1, 256, 257, 1000]
    tables = DecodeTables(
        blocks_BP=torch.randperm(20, device="cuda")[:16].view(4, 4).int(),
        lengths_B=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        max_length=1000,
    )
    q_BNH = torch.randn((4, spec.num_heads, spec.head_dim), device="cuda").bfloat16()
    expected = BACKENDS["gather"](cache, tables).attend(0, q_BNH, 0.09)
    names = kernels_that_run_here()
    assert "triton" in names
    for name in names:
        got = BACKENDS[name](cache, tables).attend(0, q_BNH, 0.09)
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=2e-2)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("settings", [{}, {"weights": "fp8", "kv_dtype": "fp8"}], ids=str)
def test_graphs_write_what_eager_steps_write(settings, policy, topology) -> None:
    # Four sequences of one length: a batch that needs no padding, where every matrix product is
    # the same one and so must be every bit.
    eager, graphs = (
        Generator(
            policy,
            GeneratorConfig(num_blocks=64, max_num_seqs=4, cuda_graphs=cuda_graphs, **settings),
            topology,
        )
        for cuda_graphs in (False, True)
    )
    said: list[list[list[float]]] = []
    for change in (0.0, 0.01):  # the second time on other weights
        reshard(policy)  # else those that generators gathered would change, and be given up
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(change)
        for generator in (eager, graphs):
            generator.load_weights(policy, 0)
        written = [write(generator, requests(1, 4)) for generator in (eager, graphs)]
        said.append([completion.logprobs.tolist() for completion in written[0].values()])
        for name, completion in written[0].items():
            assert completion.token_ids == written[1][name].token_ids
            assert torch.equal(completion.logprobs, written[1][name].logprobs)
            assert torch.equal(completion.routed_experts, written[1][name].routed_experts)
    assert said[0] != said[1]
    assert graphs.runner.decode_step.graphs.num_recorded >= 1


@pytest.mark.usefixtures("hopper")
def test_padded_rows_of_a_graph_change_nothing(policy, topology) -> None:
    eager, graphs = (
        Generator(policy, GeneratorConfig(num_blocks=64, cuda_graphs=on), topology)
        for on in (False, True)
    )
    wanted = requests(5, 1)  # replayed as eight rows
    expected, got = write(eager, wanted), write(graphs, wanted)
    # Products of another size round otherwise: compare before a token can have gone another way.
    for name, completion in got.items():
        first = slice(0, 3)
        torch.testing.assert_close(
            completion.logprobs[first], expected[name].logprobs[first], atol=0.05, rtol=0
        )


def test_a_completion_does_not_depend_on_its_batch(topology) -> None:
    # In float32, where rounding decides about one draw in ten million.
    policy = build_policy(SPEC, topology, PolicyConfig(), lambda p: init_policy(p, 0))
    generator = Generator(policy, GeneratorConfig(num_blocks=256), topology)
    together = write(generator, requests(6, 3))
    for request in requests(6, 3):
        for name, completion in write(generator, [request]).items():
            assert completion.token_ids == together[name].token_ids


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("hopper", "waiting_is_an_error")
def test_a_decode_step_waits_for_the_device_once(policy, topology) -> None:
    config = GeneratorConfig(num_blocks=64, cuda_graphs=False)  # recording waits, replaying cannot
    generator = Generator(policy, config, topology)
    write(generator, requests(3, 2))  # kernels are compiled
    generator.runner.cache.allocate()
    scheduler = Scheduler(
        BlockManager(64, 16),
        max_num_seqs=8,
        max_tokens_per_step=64,
        max_seq_len=4096,
        seed=0,
        num_turns=1,
    )
    for request in requests(3, 2, max_tokens=8):
        scheduler.add(request)
    num_decodes = 0
    while scheduler.has_work:
        step = scheduler.schedule()
        decodes = all(chunk.num_tokens == 1 for chunk in step.chunks)
        num_decodes += decodes
        if decodes:
            torch.cuda.set_sync_debug_mode("error")
        shape = GraphShape(len(step.chunks), 64) if decodes else None
        logits_RV = generator.runner.step(step, shape)
        torch.cuda.set_sync_debug_mode("default")  # the one copy to the host
        drawn = generator.sampler.draw([s.sequence for s in step.samples], logits_RV)
        for sequence in scheduler.update(step, *drawn):
            scheduler.release(sequence)
    assert num_decodes > 4
