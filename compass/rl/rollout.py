"""Rollouts: generate, score while others still decode, and bring each group together.

Shape legend: N tokens of prompt and completion, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import torch

from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.gym.pool import VerifierPool
from compass.metrics import Stopwatch
from compass.tokenizer import Tokenizer
from compass.types import Completion, Prompt, Rollout, RolloutGroup, SamplingParams, Score

Grow = Callable[[RolloutGroup], int]
"""How many further rollouts a fully scored group should get; 0 when it is complete."""


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
    grow: Grow | None = None,
    max_completion_tokens: int | None = None,
) -> list[RolloutGroup]:
    """Scored groups of this rank's prompts, in the prompts' order.

    A completion goes to the verifiers the moment it ends. When the last of a group is scored,
    `grow` may ask for more of that prompt, which join the batch that is still decoding. Collective
    under expert parallelism. The stopwatch is charged `rollout` until the last token and
    `reward_wait` for scoring after it. `max_completion_tokens` takes the place of the sampling's.
    """
    if max_completion_tokens is not None:
        sampling = replace(sampling, max_completion_tokens=max_completion_tokens)
    groups = GrowingGroups(pool, tokenizer, prompts, sampling, group_size=group_size, grow=grow)
    with stopwatch("rollout"):
        completions = generator.generate(groups.first_requests(), seed=seed, source=groups)
        for completion in completions:
            groups.add(completion)
    with stopwatch("reward_wait"):
        return groups.finish()


class GrowingGroups:
    """Groups being written and scored: the generator's source of further requests."""

    def __init__(
        self,
        pool: VerifierPool,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        group_size: int,
        grow: Grow | None,
    ) -> None:
        self._pool = pool
        self._sampling = sampling
        self._group_size = group_size
        self._grow = grow
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._token_ids = {prompt.id: tokenizer.encode_prompt(prompt) for prompt in prompts}
        self._asked = dict.fromkeys(self._prompts, group_size)
        self._completions: dict[Hashable, Completion] = {}
        self._rollouts: dict[str, list[Rollout]] = {prompt_id: [] for prompt_id in self._prompts}

    def first_requests(self) -> list[Request]:
        """`group_size` samples of every prompt."""
        return [self._request(prompt_id, 0, self._group_size) for prompt_id in self._prompts]

    def add(self, completion: Completion) -> None:
        """Send a completion that has just ended to the verifiers."""
        key = (completion.prompt_id, completion.sample)
        self._completions[key] = completion
        self._pool.submit(
            key,
            self._prompts[completion.prompt_id],
            completion.token_ids,
            finished=completion.finish_reason == "stop",
        )

    def take(self) -> list[Request]:
        """Further samples of groups that are fully scored and asked to grow."""
        return self._settle(self._pool.poll())

    @property
    def is_open(self) -> bool:
        """Whether a completion is still being scored whose verdict could make its group grow."""
        return self._grow is not None and bool(self._completions)

    def wait(self, seconds: float) -> None:
        """Wait for a verdict, at most `seconds`."""
        self._pool.wait(seconds)

    def finish(self) -> list[RolloutGroup]:
        """Wait for the last verdicts and hand over the groups. Generation is over: none grows."""
        self._grow = None
        self._settle(self._pool.drain())
        return [self._group(prompt_id) for prompt_id in self._prompts]

    def _settle(self, scores: Iterable[tuple[Hashable, Score]]) -> list[Request]:
        requests = []
        for key, score in scores:
            rollout = make_rollout(self._completions.pop(key), score)
            of_prompt = self._rollouts[rollout.prompt_id]
            of_prompt.append(rollout)
            asked = self._asked[rollout.prompt_id]
            if self._grow is None or len(of_prompt) < asked:
                continue
            further = self._grow(self._group(rollout.prompt_id))
            if further > 0:
                self._asked[rollout.prompt_id] += further
                requests.append(self._request(rollout.prompt_id, asked, further))
        return requests

    def _group(self, prompt_id: str) -> RolloutGroup:
        rollouts = sorted(self._rollouts[prompt_id], key=lambda rollout: rollout.sample)
        return RolloutGroup(prompt=self._prompts[prompt_id], rollouts=tuple(rollouts))

    def _request(self, prompt_id: str, first_sample: int, num_samples: int) -> Request:
        return Request(
            prompt_id=prompt_id,
            prompt_token_ids=self._token_ids[prompt_id],
            num_samples=num_samples,
            sampling=self._sampling,
            first_sample=first_sample,
        )


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
