"""Prompt files for training and evaluation: what no domain could judge is refused, or left out."""

from __future__ import annotations

from pathlib import Path

from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.gym.datasets import load_prompts
from compass.gym.pool.pool import PoolConfig
from compass.gym.rewards.config import named_domains
from compass.gym.rewards.scorer import check_rewards
from compass.gym.unjudgeable import unjudgeable
from compass.types import Prompt


def load_judgeable(
    path: Path, *, raw: bool, drop: bool, gym: PoolConfig, topology: Topology
) -> list[Prompt]:
    """The prompts of a file that their domains can judge, on every rank. Collective; the first
    rank checks.

    `drop`: leave out the others and say how many they were. Errors: `UserError` "FILE:LINE: ..."
    of the first other without `drop`, or when nothing would be left; those of `load_prompts`.
    """
    check_rewards(gym.rewards)
    prompts = load_prompts(path, raw=raw, own_domains=named_domains(gym.rewards))
    reasons: dict[str, str] = {}
    with raised_together(topology):
        if topology.is_main:
            reasons = unjudgeable(prompts, gym)
            _refuse_or_report(prompts, reasons, drop)
    reasons = topology.all_gather_object(reasons)[0]
    return [prompt for prompt in prompts if prompt.id not in reasons]


def _refuse_or_report(prompts: list[Prompt], reasons: dict[str, str], drop: bool) -> None:
    if not reasons:
        return
    first = next(prompt for prompt in prompts if prompt.id in reasons)
    complaint = f"{first.where}: domain {first.domain!r} {reasons[first.id]}"
    count = f"{len(reasons)} of {len(prompts)} prompts"
    if not drop:
        raise UserError(f"{complaint} ({count} cannot be judged; --drop_unjudgeable drops them)")
    if len(reasons) == len(prompts):
        raise UserError(f"{complaint} ({count} cannot be judged: nothing is left)")
    print(f"dropped {count} that cannot be judged; the first: {complaint}", flush=True)
