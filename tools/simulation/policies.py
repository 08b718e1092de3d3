"""Which replica writes which completion, and in which order: the policies compared, and the bound.

Most policies deal the work out before a step begins. Under one, replicas take it from a queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from benches.cost_model import CostModel
from simulation.jobs import Job, Replica, ReplicaRun, run_waves
from simulation.replica import run_queue, run_replica
from simulation.workload import Workload

from compass.rl.placement.shares import Balance, Share, share_rollouts
from compass.types import Prompt

Deal = list[list[Job]]
"""Jobs of each replica, in order of arrival."""


def whole_groups(work: Workload) -> Deal:
    """Groups dealt like cards, in random order."""
    deal: Deal = [[] for _ in range(work.scenario.num_replicas)]
    for card, p in enumerate(work.order):
        for length in work.lengths[p]:
            deal[card % len(deal)].append(_job(work, p, length))
    return deal


def even_split(work: Workload) -> Deal:
    """Samples dealt like cards, groups in random order: every replica has its part of each."""
    deal: Deal = [[] for _ in range(work.scenario.num_replicas)]
    card = 0
    for p in work.order:
        for length in work.lengths[p]:
            deal[card % len(deal)].append(_job(work, p, length))
            card += 1
    return deal


def even_split_in_turns(work: Workload) -> Deal:
    """The even split, each giving up its seat after a sixteenth of the most tokens. Nobody can
    choose it: it gains less than predictions, and nothing beside them."""
    turn_tokens = -(-work.scenario.max_tokens // 16)
    return [[job._replace(turn_tokens=turn_tokens) for job in jobs] for jobs in even_split(work)]


def planned(work: Workload) -> Deal:
    """`schedule.balance` of `samples`, on the predictions of `LengthHistory`."""
    deal: Deal = [[] for _ in range(work.scenario.num_replicas)]
    for share in _share_rollouts(work, "samples"):
        assert share.writer is not None, "it was planned"
        deal[share.writer] += _jobs(work, share)
    return deal


def _share_rollouts(work: Workload, balance: Balance) -> list[Share]:
    return share_rollouts(
        [Prompt(id=f"{p}", messages=()) for p in range(len(work.predicted))],
        work.predicted.tolist(),
        group_size=work.scenario.group_size,
        world_size=work.scenario.num_replicas,
        balance=balance,
    )


def _jobs(work: Workload, share: Share) -> list[Job]:
    p = int(share.prompt.id)
    lengths = work.lengths[p][share.first_sample : share.first_sample + share.num_samples]
    return [_job(work, p, length, share.priority) for length in lengths]


def _job(work: Workload, p: int, length: int, priority: int = 0) -> Job:
    return Job(int(p), int(work.prompt_tokens[p]), int(length), int(priority))


Policy = Callable[[Workload, Replica, CostModel], list[ReplicaRun]]
"""Writes a workload on all replicas."""


def _dealt(
    deal: Callable[[Workload], Deal],
    run: Callable[[Sequence[Job], Replica, CostModel], ReplicaRun] = run_replica,
) -> Policy:
    """What each replica writes is settled before any begins."""
    return lambda work, replica, cost: [run(jobs, replica, cost) for jobs in deal(work)]


def predicted_longest_first(work: Workload, replica: Replica, cost: CostModel) -> list[ReplicaRun]:
    """`schedule.balance` of `queue`: whoever has room takes what is predicted longest."""
    shares = sorted(_share_rollouts(work, "queue"), key=lambda share: share.priority)
    jobs = [_jobs(work, share) for share in shares]
    return run_queue(jobs, work.scenario.num_replicas, replica, cost)


def oracle_longest_first(work: Workload, replica: Replica, cost: CostModel) -> list[ReplicaRun]:
    """Every length is known: whoever has room takes the longest."""
    flat = np.argsort(-work.lengths, axis=None, kind="stable")
    group_size = work.scenario.group_size
    lengths = work.lengths.flatten()
    shares = [[_job(work, i // group_size, lengths[i], -lengths[i])] for i in flat]
    return run_queue(shares, work.scenario.num_replicas, replica, cost)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "static waves": _dealt(whole_groups, run_waves),
        "whole groups": _dealt(whole_groups),
        "even split": _dealt(even_split),
        "even split in turns": _dealt(even_split_in_turns),
        "planned, samples": _dealt(planned),
        "predicted longest-first": predicted_longest_first,
        "oracle longest-first": oracle_longest_first,
    }
)


def ideal_seconds(work: Workload, cost: CostModel) -> float:
    """No schedule can be faster: every step full and all replicas busy to the end, or the longest
    completion alone on a replica, whichever takes longer.

    A completion's share of a step is the smaller the fuller the step.
    """
    slots, replicas = work.scenario.num_slots, work.scenario.num_replicas
    prompts = np.broadcast_to(work.prompt_tokens[:, None], work.lengths.shape)
    decodes = work.lengths - 1  # the first token comes with the prompt
    # The k-th decode meets prompt + k tokens.
    context = decodes * prompts + decodes * (decodes + 1) / 2
    attention = cost.per_context_token_seconds * context
    prompt_seconds = cost.per_prompt_token_seconds * work.prompt_tokens
    shared = work.lengths * cost.fixed_seconds(slots) / slots + attention
    alone = work.lengths * cost.fixed_seconds(1) + attention
    spread = (shared.sum() + prompt_seconds.sum()) / replicas
    return float(max(spread, (alone + prompt_seconds[:, None]).max()))


def scored_seconds(
    ends: Sequence[float], verifier_seconds: Sequence[float], num_workers: int, *, overlapped: bool
) -> float:
    """When the last verdict is in: completions are scored by `num_workers` in the order in which
    they end, either as they end or, not `overlapped`, once all have."""
    last = max(ends, default=0.0)
    free_at = [0.0] * num_workers
    done = last
    for end, seconds in sorted(zip(ends, verifier_seconds, strict=True)):
        start = max(heapq.heappop(free_at), end if overlapped else last)
        heapq.heappush(free_at, start + seconds)
        done = max(done, start + seconds)
    return done
