"""How far apart generator and trainer are on the same tokens (docs/espo.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compass.distributed import Topology


def mismatch_metrics(
    old_logprobs: Sequence[Tensor], rollout_logprobs: Sequence[Tensor], topology: Topology
) -> dict[str, float]:
    """`mismatch/*` over the loss tokens of all ranks; empty when there are none. Collective.

    With w = exp(old - rollout): mean and max of |old - rollout|; the k3 estimate of
    KL(rollout || old), mean(w - 1 - log w), never negative; the share of tokens with
    max(w, 1/w) > 2; the effective sample size (sum w)^2 / (n sum w^2).
    """
    gaps = [o.cpu() - r.cpu() for o, r in zip(old_logprobs, rollout_logprobs, strict=True)]
    log_w = torch.cat([*gaps, torch.zeros(0)]).double()
    w = log_w.exp()
    # expm1 keeps the digits that w - 1 would cancel: gaps of interest are around 1e-4.
    sums = torch.stack(
        [
            torch.tensor(float(len(log_w)), dtype=torch.float64),
            log_w.abs().sum(),
            (log_w.expm1() - log_w).sum(),
            (log_w.abs() > torch.tensor(2.0).log()).double().sum(),
            w.sum(),
            w.square().sum(),
        ]
    )
    largest = log_w.abs().max() if len(log_w) else torch.zeros((), dtype=torch.float64)
    count, absolute, k3, extreme, sum_w, sum_w2 = topology.all_reduce_sum(sums).tolist()
    largest = topology.all_reduce_max(largest)
    if count == 0:
        return {}
    return {
        "mismatch/logprob_abs_mean": absolute / count,
        "mismatch/logprob_abs_max": largest.item(),
        "mismatch/k3_kl": k3 / count,
        "mismatch/extreme_frac": extreme / count,
        "mismatch/ess": sum_w**2 / (count * sum_w2),
    }
