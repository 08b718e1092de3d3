"""On a CUDA device: products of E4M3 by E4M3 mean what the CPU's dequantised ones mean."""

from __future__ import annotations

import pytest
import torch

from compass.distributed import ParallelConfig, init_topology
from compass.generate.config import GeneratorConfig
from compass.generate.fp8.numbers import Fp8Experts, Fp8Linear, Fp8Matrix, quantise
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.types import SamplingParams
from tests.generate.fp8 import quantise_rows_cases
from tests.tiny_batch import SPEC

pytestmark = pytest.mark.gpu


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(weight: torch.Tensor, device: str) -> Fp8Matrix:
    made = Fp8Matrix(
        tuple(weight.shape),
        quantise_activations=True,
        dtype=torch.bfloat16,
        device=torch.device(device),
    )
    for buffer, source in zip((made.values, made.scale), quantise(weight), strict=True):
        buffer.copy_(source)
    made.refresh()
    return made


@pytest.mark.parametrize("case", quantise_rows_cases.CASES.values(), ids=lambda c: c.__name__)
def test_rows_are_rounded_by_one_kernel_to_the_cpus_bits(case) -> None:
    case("cuda")


@pytest.mark.parametrize("widths", [(64, 32), (40, 24)], ids=["kernel", "no kernel for these"])
def test_a_linear_equals_the_cpus(widths) -> None:
    weight, x = normal(*widths), normal(2, 5, widths[1], seed=1).bfloat16()
    on_cpu, on_gpu = (Fp8Linear(matrix(weight, device)) for device in ("cpu", "cuda"))
    assert on_gpu(x.cuda()[:, :0]).shape == (2, 0, widths[0])
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), on_cpu(x), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("tokens_per_expert", [[3, 0, 4], [0, 0, 0], [1, 20, 300]])
def test_experts_equal_the_cpus(tokens_per_expert) -> None:
    w1, w2, w3 = normal(3, 64, 32), normal(3, 32, 64, seed=1), normal(3, 64, 32, seed=2)
    x = normal(sum(tokens_per_expert), 32, seed=3).bfloat16()
    ends = torch.tensor(tokens_per_expert).cumsum(0, dtype=torch.int32)
    on_cpu, on_gpu = (
        Fp8Experts(*(matrix(w, device) for w in (w1, w2, w3))) for device in ("cpu", "cuda")
    )
    got, expected = on_gpu(x.cuda(), ends.cuda()).cpu().float(), on_cpu(x, ends).float()
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_a_generator_in_fp8_writes_every_sample(kv_dtype) -> None:
    topology = init_topology(ParallelConfig(device="cuda"))
    cfg = PolicyConfig(dtype="bfloat16")
    policy = build_policy(SPEC, topology, cfg, lambda p: init_policy(p, 0))
    config = GeneratorConfig(num_blocks=64, weights="fp8", kv_dtype=kv_dtype)
    request = Request(
        prompt_id="p",
        prompt_token_ids=[1, 2, 3, 4, 5],
        num_samples=4,
        sampling=SamplingParams(max_completion_tokens=16),
    )
    completions = list(Generator(policy, config, topology).generate([request], seed=0))
    assert sorted(c.sample for c in completions) == [0, 1, 2, 3]
    assert all(c.logprobs.isfinite().all() for c in completions)
