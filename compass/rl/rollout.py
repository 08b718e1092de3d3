"""Rollouts: generate, score while others still decode, and bring each group together.

Shape legend: N tokens of prompt and completion, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch

from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.gym.pool import VerifierPool
from compass.metrics import Stopwatch
from compass.tokenizer import Tokenizer
from compass.types import Completion, Prompt, Rollout, RolloutGroup, SamplingParams, Score


def rollout(
    generator: Generator,
    pool: VerifierPool,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    group_size: int,
    seed: int,
    stopwatch: Stopwatch,
) -> list[RolloutGroup]:
    """`group_size` scored completions of each of this rank's prompts, in the prompts' order.

    A completion goes to the verifiers the moment it ends. Collective under expert parallelism.
    The stopwatch is charged `rollout` for generation and `reward_wait` for what scoring still
    takes after the last token.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    completions: dict[Hashable, Completion] = {}
    scores: dict[Hashable, Score] = {}
    with stopwatch("rollout"):
        requests = [
            Request(
                prompt_id=prompt.id,
                prompt_token_ids=tokenizer.encode_prompt(prompt),
                num_samples=group_size,
                sampling=sampling,
            )
            for prompt in prompts
        ]
        for completion in generator.generate(requests, seed=seed):
            key = (completion.prompt_id, completion.sample)
            completions[key] = completion
            pool.submit(
                key,
                by_id[completion.prompt_id],
                completion.token_ids,
                finished=completion.finish_reason == "stop",
            )
            scores.update(pool.poll())
    with stopwatch("reward_wait"):
        scores.update(pool.drain())
    return [
        RolloutGroup(
            prompt=prompt,
            rollouts=tuple(
                make_rollout(completions[prompt.id, s], scores[prompt.id, s])
                for s in range(group_size)
            ),
        )
        for prompt in prompts
    ]


def check_prompts(
    generator: Generator, tokenizer: Tokenizer, prompts: Sequence[Prompt], sampling: SamplingParams
) -> None:
    """Refuse prompts that could not be served, before anything is spent on the others.

    Raises:
        UserError: a prompt longer than the context, or a KV cache without room for one sequence.
    """
    for prompt in prompts:
        generator.check_request(
            Request(
                prompt_id=prompt.id,
                prompt_token_ids=tokenizer.encode_prompt(prompt),
                num_samples=1,
                sampling=sampling,
            )
        )


def make_rollout(completion: Completion, score: Score) -> Rollout:
    """Join prompt and completion into one sequence of N tokens."""
    num_prompt = len(completion.prompt_token_ids)
    token_ids = torch.tensor([*completion.prompt_token_ids, *completion.token_ids])
    rollout_logprobs = torch.zeros(len(token_ids))
    rollout_logprobs[num_prompt:] = completion.logprobs
    return Rollout(
        prompt_id=completion.prompt_id,
        sample=completion.sample,
        token_ids=token_ids,
        loss_mask=torch.arange(len(token_ids)) >= num_prompt,
        rollout_logprobs=rollout_logprobs,
        routed_experts=completion.routed_experts,
        finish_reason=completion.finish_reason,
        policy_version=completion.policy_version,
        score=score,
    )


def all_rollouts(groups: Iterable[RolloutGroup]) -> list[Rollout]:
    """Every rollout of every group."""
    return [r for group in groups for r in group.rollouts]
