"""Prompts that their domain cannot judge, found before a run starts.

Reading a reference answer is the verifier's work and can hang like any other, so it is done in the
verifier's killable processes: once for each distinct answer.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace

from compass.gym.judgement import OTHER_ANSWER_FIELDS
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.reward import DOMAINS, domain_named
from compass.gym.rewards.config import Rewards, is_replaced, named_domains
from compass.types import Prompt, Score

_A_WORKERS = 500
"""Answers that are read faster by one process than a second one starts."""


def unjudgeable(prompts: Sequence[Prompt], config: PoolConfig) -> dict[str, str]:
    """Why prompts cannot be judged, by their ids, in the prompts' order.

    A check that runs out of time or memory is a reason too: so would every verdict. Errors: as of
    `VerifierPool`.
    """
    prompts = [prompt for prompt in prompts if _is_verified(prompt.domain, config.rewards)]
    if not prompts:
        return {}
    asked = [_essence(prompt) for prompt in prompts]
    keys = [_key(prompt) for prompt in asked]
    distinct = dict(zip(keys, asked, strict=True))
    config = replace(config, num_workers=min(config.num_workers, 1 + len(distinct) // _A_WORKERS))
    with VerifierPool(
        config, domains={prompt.domain for prompt in prompts}, verify=check_as_score
    ) as pool:
        for key, prompt in distinct.items():
            pool.submit_text(key, prompt, "", finished=False)
        reasons = {key: score.reason for key, score in pool.drain()}
    return {
        prompt.id: reasons[key] for prompt, key in zip(prompts, keys, strict=True) if reasons[key]
    }


def _is_verified(domain: str, rewards: Rewards) -> bool:
    """Whether a verifier of ours judges the domain."""
    return not is_replaced(domain, rewards) and (
        domain in DOMAINS or domain not in named_domains(rewards)
    )


def check_as_score(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """`Domain.check` in a pool's form: a reason, empty when the prompt can be judged."""
    reason = domain_named(prompt.domain).check(prompt) or ""
    can = float(not reason)
    return Score(verdict=can, reward=can, valid=True, reason=reason, breakdown={}, seconds=0.0)


def _essence(prompt: Prompt) -> Prompt:
    """What its domain's check reads of a prompt, and nothing else."""
    names = domain_named(prompt.domain).reads
    if prompt.answer is None:
        names = (*names, *OTHER_ANSWER_FIELDS)
    extra = {name: prompt.extra[name] for name in names if name in prompt.extra}
    return Prompt(id="", messages=(), answer=prompt.answer, domain=prompt.domain, extra=extra)


def _key(prompt: Prompt) -> Hashable:
    return prompt.domain, prompt.answer, json.dumps(prompt.extra, sort_keys=True, default=str)
