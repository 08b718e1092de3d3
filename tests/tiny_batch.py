"""A small policy's sizes, and random rollouts with routes for it.

Shape legend: T tokens, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compass.models.specs import ModelSpec
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.types import Prompt, Rollout, RolloutGroup, RolloutTokens, Score

SPEC = ModelSpec(
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    moe_intermediate_size=24,
    # Three of six experts on each of two expert-parallel ranks: FSDP cuts them unevenly.
    num_experts=6,
    top_k=2,
    dense_layers=(1,),
    max_seq_len=64,
    # Large, so that routers and next tokens are far from uniform.
    init_std=0.2,
)


def random_routes(
    num_tokens: int, num_layers: int, top_k: int, num_experts: int, seed: int
) -> Tensor:
    """[T, L, K] distinct experts per row, in random order."""
    noise = torch.rand(
        num_tokens, num_layers, num_experts, generator=torch.Generator().manual_seed(seed)
    )
    return noise.argsort(dim=-1)[..., :top_k]


def random_tokens(seed: int) -> RolloutTokens:
    """3-8 prompt tokens, then 1-20 written ones."""
    draw = random.Random(seed)
    num_prompt, num_written = draw.randint(3, 8), draw.randint(1, 20)
    n = num_prompt + num_written
    loss_mask = torch.arange(n) >= num_prompt
    token_ids = torch.tensor([draw.randrange(SPEC.vocab_size) for _ in range(n)])
    routes = random_routes(n - 1, SPEC.num_moe_layers, SPEC.top_k, SPEC.num_experts, seed)
    return RolloutTokens(
        token_ids=token_ids,
        loss_mask=loss_mask,
        rollout_logprobs=torch.where(loss_mask, -1.0, 0.0),
        routed_experts=routes.to(torch.uint8),
    )


def rollout_of(
    tokens: RolloutTokens, prompt_id: str, sample: int, verdict: float | None = 1.0
) -> Rollout:
    """The rollout with these tokens, held by nobody yet; verdict None: its verifier failed."""
    num_completion = int(tokens.loss_mask.sum())
    return Rollout(
        prompt_id=prompt_id,
        sample=sample,
        num_prompt_tokens=len(tokens.token_ids) - num_completion,
        num_completion_tokens=num_completion,
        repetition=0.0,
        finish_reason="stop",
        policy_version=0,
        score=Score(
            verdict=verdict or 0.0,
            reward=verdict or 0.0,
            valid=verdict is not None,
            reason="",
            breakdown={},
            seconds=0.0,
        ),
        holder=-1,
        slot=-1,
    )


def random_groups(num_groups: int, group_size: int, seed: int) -> list[RolloutGroup]:
    """Groups of rollouts whose tokens and routes are random: those of `random_tokens`, in order,
    from the seed `1000 * seed + 10 * group + sample`."""
    return [
        RolloutGroup(
            prompt=Prompt(id=f"p{i}", messages=()),
            rollouts=tuple(
                rollout_of(random_tokens(1000 * seed + 10 * i + j), f"p{i}", j)
                for j in range(group_size)
            ),
        )
        for i in range(num_groups)
    ]


def written_by(
    rank: int, groups: Sequence[RolloutGroup], seed: int
) -> tuple[list[RolloutGroup], RankRollouts]:
    """Groups of `random_groups`, all of whose rollouts this rank wrote."""
    written = RankRollouts(rank)
    held = [
        replace(
            group,
            rollouts=tuple(
                replace(
                    r,
                    holder=rank,
                    slot=written.add(
                        random_tokens(1000 * seed + 10 * int(r.prompt_id[1:]) + r.sample)
                    ),
                )
                for r in group.rollouts
            ),
        )
        for group in groups
    ]
    return held, written


def random_advantages(groups: list[RolloutGroup], seed: int) -> list[list[float]]:
    """One number per rollout; some are exactly zero, as those of a flat group are."""
    draw = random.Random(seed)
    return [[draw.choice((-1.0, -0.5, 0.0, 0.7, 1.5)) for _ in group.rollouts] for group in groups]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements, end to end."""
    return torch.cat([tensor.flatten() for tensor in tensors])
