"""What a run is, in a few lines, before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compass.console import MAX_COLUMNS
from compass.distributed import Topology
from compass.models.parallel import is_expert
from compass.models.policy import Policy

_LABEL = 8
"""Columns of what stands before each line."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run learns from, for its banner."""

    amount: str
    """`512 prompts`."""
    first: str
    """The first of it, as the model sees it."""


def banner(
    model: str, policy: Policy, topology: Topology, data: Data, run_dir: Path, *, start: int
) -> list[str]:
    """Model, ranks, data, the first prompt and the folder, each in one line of `MAX_COLUMNS`.

    Args:
        start: the step that the run goes on from; 0 for a fresh one.
    """
    rows: dict[str, str] = {
        "model": f"{model}: {sizes(policy)}, {str(policy.compute_dtype).removeprefix('torch.')}",
        "ranks": ", ".join(_mesh(topology)),
        "data": data.amount,
        "first": repr(data.first)[1:-1],
        "folder": str(run_dir),
    }
    if start:
        rows["resumed"] = f"after step {start}"
    return [_cut(f"{label:<{_LABEL}}{text}") for label, text in rows.items()]


def sizes(policy: Policy) -> str:
    """Parameters, and how many of them a token meets: top-k of each layer's experts."""
    spec = policy.spec
    total = active = 0.0
    for name, parameter in policy.named_parameters():
        total += parameter.numel()
        share = spec.top_k / spec.num_experts if is_expert(name) else 1.0
        active += parameter.numel() * share
    if not spec.num_experts:
        return f"{_short(total)} parameters"
    return f"{_short(total)} parameters, {_short(active)} of them active"


def _mesh(topology: Topology) -> Iterator[str]:
    yield f"{topology.world_size} on {topology.device.type}"
    yield f"experts over {topology.ep}"
    if topology.dp_replicate > 1:
        yield f"{topology.dp_replicate} replicas"


def _short(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _cut(line: str) -> str:
    return line if len(line) <= MAX_COLUMNS else f"{line[: MAX_COLUMNS - 3]}..."
