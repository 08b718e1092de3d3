"""The generator on an accelerator without numbers: every kind of step stays on one device, and what
the host reads is what was drawn, and the routes of completions that end."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from compass.generate.attention.decode_backends import DecodeBackend, GatherDecode
from compass.generate.attention.kv_cache import KVCache
from compass.generate.block_manager import BlockManager
from compass.generate.fp8.numbers import E4M3
from compass.generate.model_runner import ModelRunner
from compass.generate.sampler import Sampler
from compass.generate.scheduler import Scheduler, Step
from compass.generate.sequence import Request
from compass.models.policy import build_model
from compass.models.specs import SPECS
from compass.types import SamplingParams
from tests.fake_accelerator import ACCELERATOR, TwoKernels, accelerator, elsewhere, move

__all__ = ["elsewhere"]

SPEC = SPECS["debug"]
BACKENDS: dict[str, DecodeBackend] = {"gather": GatherDecode, "kernel": TwoKernels}


def kinds(step: Step) -> set[str]:
    """What is in a step."""
    found = {"copies"} if step.copies else set()
    for chunk in step.chunks:
        found.add("decode" if chunk.num_tokens == 1 else "prompt" if not chunk.start else "rest")
    return found


def generate(backend: str, kv_dtype: torch.dtype, top_p: float) -> tuple[Counter[str], ...]:
    """Kinds of steps, what was read, and steps by whether they drew and ended completions."""
    scheduler = Scheduler(
        BlockManager(64, 16),
        max_num_seqs=6,
        max_tokens_per_step=12,
        max_seq_len=200,
        seed=0,
        num_turns=1,
    )
    sampling = SamplingParams(max_completion_tokens=6, top_p=top_p)
    for i in range(4):
        prompt = list(range(1, 18 + 7 * i))
        scheduler.add(
            Request(prompt_id=f"{i}", prompt_token_ids=prompt, num_samples=2, sampling=sampling)
        )
    met, steps = Counter[str](), Counter[str]()
    with accelerator() as watch:
        model = build_model(SPEC)
        move(model, torch.bfloat16)
        cache = KVCache(SPEC, num_blocks=64, block_size=16, dtype=kv_dtype, device=ACCELERATOR)
        runner = ModelRunner(model, cache, ACCELERATOR, backend=BACKENDS[backend])
        sampler = Sampler(ACCELERATOR)
        while scheduler.has_work:
            step = scheduler.schedule()
            met.update(kinds(step))
            logits_RV = runner.step(step, None)
            assert (logits_RV.device, logits_RV.dtype) == (ACCELERATOR, torch.float32)
            drawn = sampler.draw([s.sequence for s in step.samples], logits_RV)
            ended = scheduler.update(step, *drawn)
            steps.update({"drew": 1, "ended": bool(ended)})
            if ended:
                lengths = [len(s.token_ids) - 1 for s in ended]
                routes = cache.read_routes([s.block_table for s in ended], lengths)
                assert [len(r) for r in routes] == lengths
            for sequence in ended:
                scheduler.release(sequence)
        runner.step(Step(chunks=[], samples=[], copies=[]), None)
    return met, Counter(watch.reads), steps


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, E4M3], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_every_kind_stay_on_the_device(backend, kv_dtype, top_p, elsewhere) -> None:
    met, reads, steps = elsewhere(generate, backend, kv_dtype, top_p)
    assert set(met) == {"decode", "prompt", "rest", "copies"}
    assert reads == {
        "generate/sampler.py": steps["drew"],
        "generate/attention/kv_cache.py": steps["ended"],
    }
