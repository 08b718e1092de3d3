"""Step records of random rollouts, for tests of what is written and read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.metrics import Span
from compass.rollouts.record import Judged, StepRecord, Trained
from compass.text.tokenizer import Tokenizer
from compass.types import Rollout, RolloutTokens, Score

NUM_EXPERTS = 4


def tokenizer_in(folder: Path) -> Tokenizer:
    write_byte_tokenizer(folder)
    return Tokenizer.from_dir(folder)


def random_step(
    step: int,
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_groups: int = 3,
    group_size: int = 2,
    num_tokens: int = 12,
) -> StepRecord:
    """Every second rollout is trained; the first one's verifier failed."""
    draw = random.Random(f"{seed}/{step}/{rank}")
    tokens, judged, trained = [], [], {}
    for group in range(num_groups):
        for sample in range(group_size):
            slot = len(tokens)
            num_prompt, num_written = draw.randint(1, 5), draw.randint(1, num_tokens)
            tokens.append(_tokens(draw, num_prompt, num_written))
            judged.append(_judged(draw, slot, group, sample, num_prompt, num_written, step, rank))
            if slot % 2:
                trained[slot] = _trained(draw, slot, num_written)
    draw.shuffle(judged)
    return StepRecord(
        step=step,
        rank=rank,
        world_size=world_size,
        tokens=tokens,
        judged=judged,
        trained=trained,
        spans=[Span("rollout", 0.0, 1.5), Span("step", 0.0, 2.0)],
        cpu_seconds=2.0,
        num_experts=NUM_EXPERTS,
    )


def _tokens(draw: random.Random, num_prompt: int, num_written: int) -> RolloutTokens:
    n = num_prompt + num_written
    mask = torch.arange(n) >= num_prompt
    return RolloutTokens(
        token_ids=torch.tensor([draw.randrange(256) for _ in range(n)]),
        loss_mask=mask,
        rollout_logprobs=torch.where(mask, -torch.rand(n), 0.0),
        routed_experts=torch.randint(0, NUM_EXPERTS, (n - 1, 2, 1)).to(torch.uint8),
    )


def _judged(
    draw: random.Random,
    slot: int,
    group: int,
    sample: int,
    num_prompt: int,
    num_written: int,
    step: int,
    rank: int,
) -> Judged:
    verdict = float(draw.random() < 0.5)
    score = Score(
        verdict=verdict,
        reward=verdict,
        valid=slot > 0,
        reason="" if slot else "crash: \ud800 <script>alert(1)</script>",
        breakdown={"format": 1.0},
        seconds=0.1,
        answer="7",
    )
    rollout = Rollout(
        prompt_id=f"p{group}",
        sample=sample,
        num_prompt_tokens=num_prompt,
        num_completion_tokens=num_written,
        repetition=0.0,
        finish_reason="stop",
        policy_version=step - 1,
        score=score,
        holder=rank,
        slot=slot,
    )
    return Judged(
        rollout=rollout,
        group=group,
        domain="math",
        answer="7",
        shaped_reward=verdict if slot else None,
        advantage=draw.choice((-1.0, 0.0, 1.0)),
        saved_by="base",
        added=False,
    )


def _trained(draw: random.Random, slot: int, num_written: int) -> Trained:
    values = [np.array([draw.random() for _ in range(num_written)], np.float32) for _ in range(3)]
    flips = np.array([draw.randrange(2) for _ in range(num_written)], np.int16)
    return Trained(slot, slot % 3, -values[0], values[1], values[2], flips)
