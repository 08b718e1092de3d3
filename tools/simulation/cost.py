"""What a step costs on the simulated replica: from a measurement, or assumed from data sheets.

The assumed replica is one node of the geometry planned in docs/design.md: Qwen3-235B-A22B on eight
H200, experts over all eight (EP 8), each attending to its own completions. Nothing of it is
measured: no GPU was at hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benches.cost_model import CostModel

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReplicaAssumptions:
    """A node, from data sheets and the published shape of the model. Bytes are per GPU."""

    num_gpus: int = 8
    bandwidth: float = 4.8e12
    """Bytes/s of an H200."""
    bandwidth_share: float = 0.6
    """Share of it that decoding kernels reach."""
    flops_fp8: float = 1.98e15
    """Dense FP8 operations/s of an H200; bf16 has half."""
    flops_share: float = 0.3
    """Share of them that decoding and prefill reach."""
    overhead_seconds: float = 2e-3
    """Launches and two all-to-alls per layer, 94 layers."""
    active_params: float = 22e9
    expert_params: float = 227e9
    other_params: float = 8e9
    """Attention, embeddings: on every GPU."""
    top_k_share: float = 8 / 128
    kv_elements_per_token: float = 96e3
    """2 x 94 layers x 4 heads x 128."""
    memory: float = 141e9 * 0.92
    trainer_bytes: float = 22e9
    """Its shards over 64 GPUs: fp32 weights and 8-bit Adam, gradients freed."""
    workspace_bytes: float = 10e9


def assumed_cost(
    dtype: Literal["fp8", "bfloat16"], assumed: ReplicaAssumptions
) -> tuple[CostModel, int]:
    """Cost of a step and KV capacity in tokens, weights and cache both of `dtype`."""
    a = assumed
    itemsize = {"fp8": 1, "bfloat16": 2}[dtype]
    rate = a.bandwidth * a.bandwidth_share
    expert_bytes = a.expert_params * itemsize / a.num_gpus
    other_bytes = a.other_params * itemsize
    flops = a.flops_fp8 * a.flops_share / itemsize * a.num_gpus
    kv_bytes = a.kv_elements_per_token * itemsize
    cost = CostModel(
        base_seconds=a.overhead_seconds + other_bytes / rate,
        expert_seconds=expert_bytes / rate,
        missed_share=1 - a.top_k_share,
        per_sequence_seconds=2 * a.active_params / flops,
        per_context_token_seconds=kv_bytes / rate / a.num_gpus,
        per_prompt_token_seconds=2 * a.active_params / flops,
    )
    free = a.memory - a.trainer_bytes - a.workspace_bytes - expert_bytes - other_bytes
    return cost, int(free * a.num_gpus / kv_bytes)


def read_cost(path: Path) -> CostModel:
    """The `cost_model` of the last line that `tools/bench.py scale --json` printed.

    Raises:
        UserError: there is none in the file.
    """
    try:
        last = path.read_text().splitlines()[-1]
        return CostModel(**json.loads(last)["cost_model"])
    except (OSError, IndexError, KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"cost={path} does not end with the JSON line of tools/bench.py scale --json "
            f"({type(e).__name__}: {e})"
        ) from e
