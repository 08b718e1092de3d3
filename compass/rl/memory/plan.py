"""The peak of each phase of a run, estimated without a device: `tools/doctor.py plan` prints it,
and recipes refuse by it before any weight is loaded.

Two small models of the run's own sizes, of two and of three layers, go through a step on fake
tensors (`compass.rl.memory.simulate`); every further layer adds what the third one did.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.rl.memory.workload import (
    Held,
    RlSettings,
    SftSettings,
    Simulation,
    Workload,
    rl_workload,
    sft_workload,
)

IMBALANCE = 1.25
"""Rows that reach a rank's experts, over the mean: what is allowed for under expert parallelism."""
FIXED_BYTES = 3_000_000_000
"""What no tensor holds: CUDA's context, NCCL's and cuBLAS's buffers, fragmentation. A guess."""
HEADROOM = 0.08
"""Share of the device that stays free."""

_LAYERS = (2, 3)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What each phase of a run needs on one rank. Built by `plan_memory`."""

    workload: Workload
    phases: dict[str, Held]
    """In order; bytes of tensors."""
    fixed_bytes: int

    @property
    def dearest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name].peak)

    def total(self, phase: str) -> int:
        """Bytes that a phase takes of the device."""
        return self.phases[phase].peak + self.fixed_bytes

    def without_training(self) -> MemoryPlan:
        """Of a program that generates and scores with the same policy: no moments, no update."""
        moments = self.phases["rollout"].before - self.phases["load"].peak
        kept = {
            name: Held(
                before=held.before - moments, peaks=tuple(peak - moments for peak in held.peaks)
            )
            for name, held in self.phases.items()
            if name in ("rollout", "old log-probabilities")
        }
        return replace(self, phases={"load": self.phases["load"], **kept})

    def check(self, device_bytes: int) -> None:
        """Refuse a run that leaves less than `HEADROOM` of the device free.

        Raises:
            UserError: it names the phase that needs most, and the field to change.
        """
        needed, usable = self.total(self.dearest), int(device_bytes * (1 - HEADROOM))
        if needed > usable:
            remedy = _remedy(self, needed - usable)
            raise UserError(
                f"the {self.dearest} would need {needed / 1e9:.1f} GB (estimated); {HEADROOM:.0%} "
                f"headroom leaves {usable / 1e9:.1f} of {device_bytes / 1e9:.1f} GB; {remedy}"
            )


def _remedy(plan: MemoryPlan, excess: int) -> str:
    if plan.dearest == "rollout":
        return _of_rollout(plan.workload, excess)
    if plan.dearest in ("update", "old log-probabilities"):
        return _of_update(plan, excess)
    return _MORE_RANKS


_MORE_RANKS = "weights, moments and gradients alone are too many: use more ranks"


def _of_rollout(work: Workload, excess: int) -> str:
    assert work.rollout is not None
    config = work.rollout.generator
    block_bytes = work.cache_bytes // work.num_cache_blocks
    left = work.cache_bytes - excess
    if left >= block_bytes * -(-work.longest_sequence // config.block_size):
        if config.num_blocks is not None:
            return f"lower generator.num_blocks to {left // block_bytes}"
        return f"lower generator.kv_cache_gb to {int(left / 1e8) / 10}"
    if config.weights == "direct":
        return "set generator.weights=fp8, raise parallel.ep, or use more ranks"
    return "raise parallel.ep, or use more ranks"


def _of_update(plan: MemoryPlan, excess: int) -> str:
    """Activations grow with the tokens of a microbatch along a line, of which another plan gives
    the second point."""
    work, phase = plan.workload, plan.dearest
    shorter = replace(work, max_tokens_per_microbatch=1)
    if work.tokens_per_microbatch > work.longest_sequence:
        saved = plan.total(phase) - _like(plan, shorter).total(phase)
        if saved >= excess:
            fewer = work.tokens_per_microbatch - work.longest_sequence
            kept = work.tokens_per_microbatch - fewer * excess / saved
            return f"lower {work.microbatch_field} to {int(kept) // 256 * 256}"
    if not work.policy.activation_checkpointing:
        return "set policy.activation_checkpointing=true"
    shortest = replace(shorter, longest_sequence=256)
    if plan.total(phase) - _like(plan, shortest).total(phase) >= excess:
        return f"lower {work.length_field}, and {work.microbatch_field} to no more than that"
    return _MORE_RANKS


def _like(plan: MemoryPlan, workload: Workload) -> MemoryPlan:
    return plan_memory([workload], fixed_bytes=plan.fixed_bytes)[0]


def plan_memory(
    workloads: Sequence[Workload],
    *,
    imbalance: float = IMBALANCE,
    fixed_bytes: int = FIXED_BYTES,
    layers: tuple[int, int] = _LAYERS,
) -> list[MemoryPlan]:
    """Estimate each workload. Takes seconds, in a process of its own: a simulated device stays
    with the process that made it."""
    simulations = [
        Simulation(workload=work, num_layers=min(n, work.spec.num_layers), imbalance=imbalance)
        for work in workloads
        for n in layers
    ]
    held = _simulated(simulations)
    plans = []
    for i, work in enumerate(workloads):
        few, more = held[2 * i], held[2 * i + 1]
        phases = {
            name: _extrapolated(few[name], more[name], layers, work.spec.num_layers) for name in few
        }
        plans.append(MemoryPlan(workload=work, phases=phases, fixed_bytes=fixed_bytes))
    return plans


def _extrapolated(few: Held, more: Held, layers: tuple[int, int], num_layers: int) -> Held:
    """On the line through two depths; a model no deeper than the second was simulated whole."""
    further = max(0, num_layers - layers[1]) / (layers[1] - layers[0])

    def at(low: int, high: int) -> int:
        return high + round(further * (high - low))

    return Held(
        before=at(few.before, more.before),
        peaks=tuple(at(*pair) for pair in zip(few.peaks, more.peaks, strict=True)),
    )


def _simulated(simulations: list[Simulation]) -> list[dict[str, Held]]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_bytes(pickle.dumps(simulations))
        ran = subprocess.run(
            [sys.executable, "-m", "compass.rl.memory.simulate", str(source), str(target)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # it needs no device, and takes none
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError(f"the simulation failed with code {ran.returncode}:\n{ran.stderr}")
        return pickle.loads(target.read_bytes())


def require_rl_memory(cfg: RlSettings, topology: Topology) -> None:
    """Refuse reinforcement learning that a CUDA device cannot hold, before anything is loaded;
    other devices are taken as they are. Collective.

    Raises:
        UserError: see `MemoryPlan.check`.
    """
    _require(lambda: rl_workload(cfg, topology.world_size), topology)


def require_sft_memory(cfg: SftSettings, topology: Topology) -> None:
    """The same for supervised learning."""
    _require(lambda: sft_workload(cfg, topology.world_size), topology)


def require_scoring_memory(work: Workload, topology: Topology) -> None:
    """The same for a program that generates and scores."""
    _require(lambda: work, topology, trains=False)


def _require(workload: Callable[[], Workload], topology: Topology, *, trains: bool = True) -> None:
    if topology.device.type != "cuda":
        return
    with raised_together(topology):
        if topology.is_main:
            total = torch.cuda.get_device_properties(topology.device).total_memory
            plan = plan_memory([workload()])[0]
            (plan if trains else plan.without_training()).check(total)
