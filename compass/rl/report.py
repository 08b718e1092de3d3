"""What a batch of groups looks like: rewards, lengths, flat shares, expert load (METHOD 9), and
samples.

Shape legend: N tokens of one rollout, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence

import torch

from compass.distributed import Topology
from compass.means import Means
from compass.models.specs import ModelSpec
from compass.rl.pack import Minibatch
from compass.rl.rollout import all_rollouts
from compass.tokenizer import Tokenizer
from compass.types import Rollout, RolloutGroup


def step_metrics(
    groups: Sequence[RolloutGroup],
    minibatches: Sequence[Minibatch],
    spec: ModelSpec,
    topology: Topology,
    seconds: Mapping[str, float],
    *,
    num_workers: int,
) -> dict[str, float]:
    """Everything there is to say about a step's rollouts and how they were packed. Collective.

    Args:
        seconds: `timing_s/*` of this rank.
        num_workers: verifier processes of a rank.
    """
    return (
        batch_metrics(groups, spec, topology)
        | overlap_metrics(
            groups, topology, wait_seconds=seconds["timing_s/reward_wait"], num_workers=num_workers
        )
        | throughput_metrics(groups, minibatches, topology, seconds["timing_s/step"])
    )


def overlap_metrics(
    groups: Sequence[RolloutGroup], topology: Topology, *, wait_seconds: float, num_workers: int
) -> dict[str, float]:
    """`reward/overlap_frac`: the share of verifier time hidden behind generation, over all ranks.

    What is not hidden is the wait after the last token, during which every worker of the rank can
    be busy. Empty when no verifier took any time. Collective.
    """
    total = sum(rollout.score.seconds for rollout in all_rollouts(groups))
    exposed = min(total, wait_seconds * num_workers)
    sums = topology.all_reduce_sum(torch.tensor([total, exposed], dtype=torch.float64))
    total, exposed = sums.tolist()
    return {"reward/overlap_frac": 1 - exposed / total} if total else {}


def batch_metrics(
    groups: Sequence[RolloutGroup], spec: ModelSpec, topology: Topology
) -> dict[str, float]:
    """`reward/*`, `zv/*`, `response_length/*` and the rollouts' `router/*` over all ranks.
    Collective."""
    means = Means()
    rollouts = all_rollouts(groups)
    for rollout in rollouts:
        _add_rollout(means, rollout)
    for group in groups:
        _add_group(means, group)
    lengths = torch.tensor([float(r.num_completion_tokens) for r in rollouts] or [0.0])
    shortest = min((r.num_completion_tokens for r in rollouts), default=math.inf)
    metrics = means.reduce(topology)
    mean, square = metrics.pop("reward/mean", math.nan), metrics.pop("reward/square", math.nan)
    metrics |= load_metrics(rollouts, spec, topology)
    return metrics | {
        "reward/mean": mean,
        "reward/std": math.sqrt(max(0.0, square - mean**2)),
        "response_length/max": topology.all_reduce_max(lengths.max()).item(),
        "response_length/min": -topology.all_reduce_max(torch.tensor(-float(shortest))).item(),
    }


def load_metrics(
    rollouts: Sequence[Rollout], spec: ModelSpec, topology: Topology
) -> dict[str, float]:
    """`router/bytes` of the recorded routes and `router/max_violation` of expert balance, over
    all ranks; empty for a dense model. Collective.

    The violation of a layer is (largest load - mean load) / mean load (MaxVio of
    arXiv 2408.15664); the worst layer's is given. 0 is balance, E/K - 1 total collapse.
    """
    if spec.num_moe_layers == 0:
        return {}
    load_LE = torch.zeros(spec.num_moe_layers, spec.num_experts, dtype=torch.int64)
    num_bytes = 0
    for rollout in rollouts:
        routes_NLK = rollout.routed_experts
        num_bytes += routes_NLK.numel() * routes_NLK.element_size()
        chosen_LN = routes_NLK.long().transpose(0, 1).flatten(1)
        load_LE.scatter_add_(1, chosen_LN, torch.ones_like(chosen_LN))
    load_LE = topology.all_reduce_sum(load_LE).double()
    violation_L = load_LE.max(dim=1).values / load_LE.mean(dim=1) - 1
    return {
        "router/bytes": topology.all_reduce_sum(torch.tensor(float(num_bytes))).item(),
        "router/max_violation": violation_L.max().item(),
    }


def throughput_metrics(
    groups: Sequence[RolloutGroup],
    minibatches: Sequence[Minibatch],
    topology: Topology,
    step_seconds: float,
) -> dict[str, float]:
    """`perf/*` and shares of the batch that were trained, over all ranks. Collective.

    Tokens are those the policy wrote, flat groups included, over the seconds of the whole step.
    """
    rollouts = all_rollouts(groups)
    microbatches = [m for minibatch in minibatches for m in minibatch.microbatches]
    fed = sum(len(m.token_ids) for m in microbatches)
    fillers = sum(not len(m.rows) for m in microbatches)
    counts = [sum(r.num_completion_tokens for r in rollouts), len(rollouts), fed, fillers]
    written, num_rollouts, fed, fillers = topology.all_reduce_sum(torch.tensor(counts)).tolist()
    trained = sum(minibatch.num_trained_rollouts for minibatch in minibatches)
    divided_by = sum(minibatch.num_rollouts for minibatch in minibatches)
    return {
        "perf/tokens_per_s": written / step_seconds,
        "perf/padding_frac": fillers / max(1, fed),
        "perf/max_memory_gb": topology.all_reduce_max(
            torch.tensor(peak_memory_bytes(topology) / 1e9)
        ).item(),
        "actor/trained_frac": trained / max(1, num_rollouts),
        # 1 when means go over all rollouts, `trained_frac` when over the trained ones alone.
        "actor/denominator_frac": divided_by / max(1, num_rollouts),
    }


def peak_memory_bytes(topology: Topology) -> int:
    """The most memory this rank has held: of the device, or of the process on CPU."""
    if topology.device.type == "cuda":
        return torch.cuda.max_memory_allocated(topology.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _add_rollout(means: Means, rollout: Rollout) -> None:
    score = rollout.score
    if score.valid:
        means.add("reward/mean", score.verdict)
        means.add("reward/square", score.verdict**2)
    means.add("reward/invalid", float(not score.valid))
    means.add("reward/timeouts", float(score.reason.startswith("timeout")))
    means.add("reward/seconds", score.seconds)
    for name, value in score.breakdown.items():
        means.add(f"reward/{name}/mean", value)
    means.add("response_length/mean", rollout.num_completion_tokens)
    means.add("response_length/truncated_frac", float(rollout.finish_reason == "length"))


def _add_group(means: Means, group: RolloutGroup) -> None:
    flat, verdicts = group.is_flat, group.valid_verdicts
    right = flat and bool(verdicts) and min(verdicts) >= 1
    wrong = flat and bool(verdicts) and max(verdicts) <= 0
    means.add("zv/frac_flat", float(flat))
    means.add("zv/all_right_frac", float(right))
    means.add("zv/all_wrong_frac", float(wrong))
    means.add("zv/other_frac", float(flat and not right and not wrong))


def sample_text(group: RolloutGroup, tokenizer: Tokenizer, *, num_rollouts: int = 2) -> str:
    """A group's prompt and first rollouts as text, for a person to read."""
    prompt = group.prompt
    parts = [f"prompt {prompt.id}  answer {prompt.answer!r}  domain {prompt.domain}"]
    for rollout in group.rollouts[:num_rollouts]:
        score = rollout.score
        verdict = f"verdict {score.verdict:g}" if score.valid else f"invalid: {score.reason}"
        parts.append(
            f"--- sample {rollout.sample}  {verdict}  {rollout.num_completion_tokens} tokens, "
            f"{rollout.finish_reason}\n{tokenizer.decode(rollout.token_ids.tolist())}"
        )
    return "\n".join(parts)
