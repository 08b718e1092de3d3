"""On a CUDA device: the same policy says the same as on the CPU, packed and paged."""

from __future__ import annotations

import pytest
import torch

from compass.distributed import ParallelConfig as Parallel
from compass.distributed import build_topology, init_topology
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import build_policy, init_policy
from compass.rl.pack import Trained, pack_microbatch
from compass.train.trainer import run_policy
from compass.types import SamplingParams
from tests.tiny_batch import SPEC, random_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_packed_attention_and_its_gradient_equal_the_cpu(dtype, tolerance) -> None:
    lengths = (5, 1, 12, 300)
    draw = torch.Generator().manual_seed(0)
    qkv = [torch.randn(sum(lengths), n, 32, generator=draw).to(dtype) for n in (4, 2, 2)]
    upstream = torch.randn(sum(lengths), 4, 32, generator=draw).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        inputs = [x.detach().to(device).requires_grad_() for x in qkv]
        out = PackedAttention(lengths, device).attend(0, *inputs, 0.2)
        grads = torch.autograd.grad(out, inputs, upstream.to(device))
        found.append([x.detach().cpu().float() for x in (out, *grads)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert (on_gpu - on_cpu).norm() <= tolerance * on_cpu.norm()


def test_trainer_and_generator_on_cuda_agree_with_each_other_and_with_the_cpu() -> None:
    topology = init_topology(Parallel(device="cuda"))
    policy = build_policy(SPEC, topology, PolicyConfig(), lambda p: init_policy(p, 0))
    generator = Generator(policy, GeneratorConfig(num_blocks=64), topology)
    sampling = SamplingParams(max_completion_tokens=16)
    request = Request(
        prompt_id="p", prompt_token_ids=[1, 2, 3, 4, 5], num_samples=4, sampling=sampling
    )
    completions = list(generator.generate([request], seed=0))
    assert sorted(c.sample for c in completions) == [0, 1, 2, 3]
    assert all(len(c.token_ids) == 16 for c in completions)

    item = Trained(tokens=random_tokens(seed=0), advantage=1.0)
    microbatch = pack_microbatch([item], SPEC, replay=True)
    cpu = build_topology(0, 1, device=torch.device("cpu"))
    on_cpu_policy = build_policy(SPEC, cpu, PolicyConfig(), lambda p: init_policy(p, 0))
    with torch.no_grad():
        on_gpu, _ = run_policy(policy, microbatch, topology.device, temperature=1.0)
        on_cpu, _ = run_policy(on_cpu_policy, microbatch, cpu.device, temperature=1.0)
    torch.testing.assert_close(on_gpu.logprobs.cpu(), on_cpu.logprobs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(on_gpu.entropy.cpu(), on_cpu.entropy, atol=1e-3, rtol=1e-3)
