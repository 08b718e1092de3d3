"""What a batch of groups looks like: rewards, lengths, flat shares, expert load, idle slots.

Shape legend: N tokens of one rollout, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable, Mapping, Sequence

import torch

from compass.distributed import Topology
from compass.means import Means
from compass.models.flops import peak_tflops, training_flops
from compass.models.specs import ModelSpec
from compass.rl.pack import PackedBatch
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.rollout import all_rollouts
from compass.rollouts.table import expert_load
from compass.types import Microbatch, Rollout, RolloutGroup, RolloutTokens


def step_metrics(
    groups: Sequence[RolloutGroup],
    batch: PackedBatch,
    written: RankRollouts,
    spec: ModelSpec,
    topology: Topology,
    seconds: Mapping[str, float],
    *,
    num_workers: int,
    num_slots: int,
) -> dict[str, float]:
    """Everything there is to say about a step's rollouts and how they were packed. Collective.

    Args:
        groups: those at home on this rank.
        written: what this rank wrote.
        seconds: `timing_s/*` of this rank.
        num_workers: verifier processes of a rank.
        num_slots: completions that a rank can decode at once.
    """
    return (
        batch_metrics(groups, topology)
        | load_metrics(written, spec, topology)
        | overlap_metrics(
            written.verifier_seconds,
            topology,
            wait_seconds=seconds["timing_s/reward_wait"],
            num_workers=num_workers,
        )
        | schedule_metrics(written, batch, topology, num_slots=num_slots)
        | throughput_metrics(groups, batch, topology, seconds["timing_s/step"])
        | utilisation_metrics(batch, spec, topology, seconds["timing_s/update"])
    )


def overlap_metrics(
    verifier_seconds: float, topology: Topology, *, wait_seconds: float, num_workers: int
) -> dict[str, float]:
    """`reward/overlap_frac`: the share of verifier time hidden behind generation, over all ranks.

    What is not hidden is the wait after the last token, during which every worker of the rank can
    be busy. Empty when no verifier took any time. Collective.
    """
    exposed = min(verifier_seconds, wait_seconds * num_workers)
    sums = topology.all_reduce_sum(torch.tensor([verifier_seconds, exposed], dtype=torch.float64))
    total, exposed = sums.tolist()
    return {"reward/overlap_frac": 1 - exposed / total} if total else {}


def schedule_metrics(
    written: RankRollouts, batch: PackedBatch, topology: Topology, *, num_slots: int
) -> dict[str, float]:
    """`sched/*` of a step's last round of rollouts, and of the update's microbatches. Collective.

    `makespan_over_ideal` is the time to the slowest rank's last token over the mean rank's;
    `imbalance` the update's counterpart in floating-point operations (`PackedBatch`).
    """
    by_rank = topology.all_gather_object(written.end_seconds)
    last = [max(ends, default=0.0) for ends in by_rank]
    return {
        "sched/tail_idle_frac": tail_idle_frac(by_rank, num_slots=num_slots),
        "sched/makespan_over_ideal": max(last) * len(last) / sum(last) if any(last) else 1.0,
        "sched/imbalance": batch.imbalance,
        "sched/exchange_bytes": float(batch.exchanged_bytes),
    }


def tail_idle_frac(end_seconds: Sequence[Sequence[float]], *, num_slots: int) -> float:
    """Share of slot-seconds that pass idle after a slot's last completion and before the last
    token of all ranks.

    A rank has as many slots as the busiest one can fill. While completions wait, a slot that comes
    free is filled at once, so a rank's last ends are those of its slots, one each; a slot that
    never had a completion is idle from the start.

    Args:
        end_seconds: of every completion, by rank, since the rollout began.
        num_slots: completions that a rank can decode at once.
    """
    makespan = max((end for ends in end_seconds for end in ends), default=0.0)
    num_slots = min(num_slots, max(map(len, end_seconds)))
    busy = sum(end for ends in end_seconds for end in sorted(ends)[-num_slots:])
    slot_seconds = makespan * num_slots * len(end_seconds)
    return 1 - busy / slot_seconds if slot_seconds else 0.0


def batch_metrics(groups: Sequence[RolloutGroup], topology: Topology) -> dict[str, float]:
    """`reward/*`, `zv/*` and `response_length/*` over all ranks. Collective."""
    means = Means()
    rollouts = all_rollouts(groups)
    for rollout in rollouts:
        _add_rollout(means, rollout)
    for group in groups:
        _add_group(means, group)
        _add_to_domain(means, group)
    lengths = torch.tensor([float(r.num_completion_tokens) for r in rollouts] or [0.0])
    shortest = min((r.num_completion_tokens for r in rollouts), default=math.inf)
    metrics = means.reduce(topology)
    mean, square = (
        metrics.pop("reward/mean", math.nan),
        metrics.pop("square of the reward", math.nan),
    )
    return metrics | {
        "reward/mean": mean,
        "reward/std": math.sqrt(max(0.0, square - mean**2)),
        "response_length/max": topology.all_reduce_max(lengths.max()).item(),
        "response_length/min": -topology.all_reduce_max(torch.tensor(-float(shortest))).item(),
    }


def load_metrics(
    written: Iterable[RolloutTokens], spec: ModelSpec, topology: Topology
) -> dict[str, float]:
    """`router/bytes` of the recorded routes and `router/max_violation` of expert balance, over
    all ranks; empty for a dense model. Collective.

    The violation of a layer is (largest load - mean load) / mean load (MaxVio of
    arXiv 2408.15664); the worst layer's is given. 0 is balance, E/K - 1 total collapse.
    """
    if spec.num_moe_layers == 0:
        return {}
    written = list(written)
    num_bytes = sum(tokens.routed_experts.nbytes for tokens in written)
    mine_LE = expert_load(written, num_layers=spec.num_moe_layers, num_experts=spec.num_experts)
    load_LE = topology.all_reduce_sum(torch.from_numpy(mine_LE)).double()
    violation_L = load_LE.max(dim=1).values / load_LE.mean(dim=1) - 1
    return {
        "router/bytes": topology.all_reduce_sum(torch.tensor(float(num_bytes))).item(),
        "router/max_violation": violation_L.max().item(),
    }


def throughput_metrics(
    groups: Sequence[RolloutGroup],
    batch: PackedBatch,
    topology: Topology,
    step_seconds: float,
) -> dict[str, float]:
    """`perf/*` and shares of the batch that were trained, over all ranks. Collective.

    Tokens are those the policy wrote, flat groups included, over the seconds of the whole step.
    """
    rollouts = all_rollouts(groups)
    microbatches = [m for minibatch in batch.minibatches for m in minibatch.microbatches]
    fed = sum(len(m.token_ids) for m in microbatches)
    fillers = sum(not len(m.rows) for m in microbatches)
    counted = sum(group.count * len(group.rollouts) for group in groups)
    counts = [sum(r.num_completion_tokens for r in rollouts), len(rollouts), counted, fed, fillers]
    written, num_rollouts, counted, fed, fillers = topology.all_reduce_sum(
        torch.tensor(counts, dtype=torch.float64)
    ).tolist()
    trained = sum(minibatch.num_trained_rollouts for minibatch in batch.minibatches)
    masked = sum(minibatch.num_masked_rollouts for minibatch in batch.minibatches)
    divided_by = sum(minibatch.num_rollouts for minibatch in batch.minibatches)
    return {
        "perf/tokens_per_s": written / step_seconds,
        "perf/padding_frac": fillers / max(1, fed),
        "perf/max_memory_gb": topology.all_reduce_max(
            torch.tensor(peak_memory_bytes(topology) / 1e9)
        ).item(),
        "actor/trained_frac": trained / max(1, num_rollouts),
        "actor/masked_frac": masked / max(1, num_rollouts),
        # 1 when means go over all rollouts, `trained_frac` when over the trained ones alone.
        "actor/denominator_frac": divided_by / max(1, counted),
    }


def utilisation_metrics(
    batch: PackedBatch, spec: ModelSpec, topology: Topology, update_seconds: float
) -> dict[str, float]:
    """`perf/tflops`: what the update's forward and backward passes need (`compass.models.flops`),
    for each device, over the time of the slowest rank's update; optimizer steps are in the time.
    `perf/mfu`: its share of the device's bfloat16 peak, where that is known. Collective.
    """
    flops = sum(
        training_flops(spec, zip(m.sequence_lengths, scored_per_sequence(m), strict=True))
        for minibatch in batch.minibatches
        for m in minibatch.microbatches
        if len(m.rows)
    )
    total = topology.all_reduce_sum(torch.tensor(flops, dtype=torch.float64)).item()
    slowest = topology.all_reduce_max(torch.tensor(update_seconds, dtype=torch.float64)).item()
    metrics = {"perf/tflops": total / topology.world_size / slowest / 1e12}
    if topology.device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(topology.device))
        if peak is not None:
            metrics["perf/mfu"] = metrics["perf/tflops"] / peak
    return metrics


def scored_per_sequence(microbatch: Microbatch) -> list[int]:
    """Loss tokens of each sequence."""
    num_sequences = microbatch.num_sequences
    return torch.bincount(microbatch.sequence_ids, minlength=num_sequences).tolist()


def peak_memory_bytes(topology: Topology) -> int:
    """The most memory this rank has held: of the device, or of the process on CPU."""
    if topology.device.type == "cuda":
        return torch.cuda.max_memory_allocated(topology.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _add_rollout(means: Means, rollout: Rollout) -> None:
    score = rollout.score
    if score.valid:
        means.add("reward/mean", score.reward)
        means.add("square of the reward", score.reward**2)
        means.add("reward/verdict", score.verdict)
    means.add("reward/invalid", float(not score.valid))
    means.add("reward/timeouts", float(score.reason.startswith("timeout")))
    means.add("reward/seconds", score.seconds)
    for name, value in score.breakdown.items():
        means.add(f"reward/{name}/mean", value)
    means.add("response_length/mean", rollout.num_completion_tokens)
    means.add("response_length/truncated_frac", float(rollout.finish_reason == "length"))


def _add_group(means: Means, group: RolloutGroup) -> None:
    tied, verdicts = group.is_tied, group.valid_verdicts
    right = tied and bool(verdicts) and min(verdicts) >= 1
    wrong = tied and bool(verdicts) and max(verdicts) <= 0
    means.add("zv/frac_flat", float(group.is_flat))
    means.add("zv/frac_tied", float(tied))
    means.add("zv/all_right_frac", float(right))
    means.add("zv/all_wrong_frac", float(wrong))
    means.add("zv/other_frac", float(tied and not right and not wrong))


def _add_to_domain(means: Means, group: RolloutGroup) -> None:
    domain, rewards = group.prompt.domain, group.valid_rewards
    means.add(f"reward/{domain}/mean", math.fsum(rewards), len(rewards))
    means.add(f"zv/{domain}/frac_flat", float(group.is_flat))
