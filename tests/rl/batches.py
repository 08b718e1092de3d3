"""Rollouts and groups made by hand."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from compass.distributed import Topology
from compass.models.specs import ModelSpec
from compass.rl.pack import PackConfig, PackedBatch, pack
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.types import Prompt, Rollout, RolloutGroup, RolloutTokens, Score

SPEC = ModelSpec(
    vocab_size=50,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    moe_intermediate_size=8,
    num_experts=6,
    top_k=2,
    dense_layers=(1,),
    max_seq_len=64,
)


def make_score(verdict: float | None, reason: str = "", *, reward: float | None = None) -> Score:
    """None: the verifier failed. The reward is by default the verdict."""
    return Score(
        verdict=0.0 if verdict is None else verdict,
        reward=(verdict or 0.0) if reward is None else reward,
        valid=verdict is not None,
        reason=reason,
        breakdown={},
        seconds=0.0,
    )


def make_rollout(
    name: str,
    num_prompt: int = 2,
    num_completion: int = 3,
    *,
    score: Score | None = None,
    finish_reason: str = "stop",
) -> Rollout:
    """A rollout that nobody holds yet; its tokens are `tokens_of` it."""
    return Rollout(
        prompt_id=name,
        sample=0,
        num_prompt_tokens=num_prompt,
        num_completion_tokens=num_completion,
        repetition=0.0,
        finish_reason=finish_reason,
        policy_version=0,
        score=score or make_score(1.0),
        holder=-1,
        slot=-1,
    )


def tokens_of(rollout: Rollout) -> RolloutTokens:
    """Tokens, log-probabilities and routes drawn from the rollout's name alone."""
    n = rollout.num_tokens
    noise = torch.Generator().manual_seed(hash_of(rollout.prompt_id))
    mask = torch.arange(n) >= rollout.num_prompt_tokens
    routes = torch.rand((n - 1, SPEC.num_moe_layers, SPEC.num_experts), generator=noise)
    return RolloutTokens(
        token_ids=torch.randint(0, SPEC.vocab_size, (n,), generator=noise),
        loss_mask=mask,
        rollout_logprobs=torch.where(mask, -torch.rand(n, generator=noise), 0.0),
        routed_experts=routes.topk(SPEC.top_k).indices.to(torch.uint8),
    )


def written_by(
    rank: int, groups: Sequence[RolloutGroup]
) -> tuple[list[RolloutGroup], RankRollouts]:
    """The groups, all of whose rollouts this rank wrote."""
    written = RankRollouts(rank)
    held = [
        replace(
            group,
            rollouts=tuple(
                replace(r, holder=rank, slot=written.add(tokens_of(r))) for r in group.rollouts
            ),
        )
        for group in groups
    ]
    return held, written


def make_group(name: str, rollouts: Sequence[Rollout]) -> RolloutGroup:
    """A group of the given rollouts."""
    prompt = Prompt(id=name, messages=({"role": "user", "content": "?"},))
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


def group_of_verdicts(name: str, verdicts: Sequence[float | None]) -> RolloutGroup:
    """A group with these verdicts; None is a rollout whose verifier failed."""
    rollouts = [
        make_rollout(f"{name}/{i}", score=make_score(verdict)) for i, verdict in enumerate(verdicts)
    ]
    return make_group(name, rollouts)


def pack_batch(
    groups: Sequence[RolloutGroup],
    advantages: Sequence[Sequence[float]],
    topology: Topology,
    cfg: PackConfig,
    *,
    numbers: Sequence[int] | None = None,
    replay: bool = True,
) -> PackedBatch:
    """`pack` for `SPEC`, of groups that this rank wrote itself."""
    held, written = written_by(topology.rank, groups)
    return pack(
        held, advantages, written, SPEC, topology, cfg, numbers=numbers or range(len(groups)),
        replay=replay,
    )  # fmt: skip


def hash_of(name: str) -> int:
    """The same in every process."""
    return sum((i + 1) * byte for i, byte in enumerate(name.encode()))
