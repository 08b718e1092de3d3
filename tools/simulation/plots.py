"""PNGs of simulated steps. matplotlib is in the extra `dev` and imported when a plot is wanted."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from benches.cost_model import CostModel
from simulation.jobs import Replica, ReplicaRun
from simulation.policies import POLICIES
from simulation.step import ScenarioResult
from simulation.workload import LengthLaw, Scenario, draw_workload


def plot_makespans(results: Sequence[ScenarioResult], path: Path) -> None:
    """Time of each policy relative to the even split, a group of bars for each scenario."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in POLICIES if name != "static waves"]  # some eight times the others
    figure, axes = plt.subplots(figsize=(10, 4))
    width = 0.8 / (len(names) + 1)
    for i, name in enumerate([*names, "ideal"]):
        heights = [
            (sum(r.ideal) / sum(r.written("even split")))
            if name == "ideal"
            else 1 / r.speedup(name)
            for r in results
        ]
        places = [x + (i - len(names) / 2) * width for x in range(len(results))]
        axes.bar(places, heights, width, label=name)
    axes.set_xticks(range(len(results)), [r.scenario.name for r in results])
    axes.set_ylabel("time / even split")
    axes.set_ylim(0.5, None)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.legend(fontsize=7, ncols=4, loc="lower left")
    axes.set_title("simulated time to write one step's completions")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def plot_slots(
    scenario: Scenario,
    law: LengthLaw,
    seed: int,
    cost: CostModel,
    kv_tokens: int,
    folder: Path,
) -> None:
    """Which slot wrote when, on the slowest replica of the even split and of longest-first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    work = draw_workload(scenario, law, seed)
    replica = Replica(max_num_seqs=scenario.num_slots, kv_tokens=kv_tokens)
    figure, rows = plt.subplots(2, 1, figsize=(10, 6), sharex=True, sharey=True)
    for axes, name in zip(rows, ("even split", "predicted longest-first"), strict=True):
        slowest = max(POLICIES[name](work, replica, cost), key=lambda run: run.makespan)
        _draw_slots(axes, slowest, scenario.max_tokens)
        axes.set_title(f"{name}: {slowest.makespan:,.0f} s", fontsize=9)
        axes.set_ylabel("slot")
    rows[-1].set_xlabel(f"simulated seconds ({scenario.name}; darker: longer completions)")
    figure.tight_layout()
    figure.savefig(folder / "simulate_slots.png", dpi=80)
    plt.close(figure)


def _draw_slots(axes: object, run: ReplicaRun, max_tokens: int) -> None:
    """A bar for each completion, in the slot that was free first."""
    from matplotlib import colormaps

    free: list[int] = []
    busy: list[tuple[float, int]] = []
    num_slots = 0
    for i in sorted(range(len(run.jobs)), key=lambda i: run.starts[i]):
        while busy and busy[0][0] <= run.starts[i]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, num_slots)
            num_slots += 1
        slot = heapq.heappop(free)
        heapq.heappush(busy, (run.ends[i], slot))
        shade = colormaps["viridis_r"](run.jobs[i].num_tokens / max_tokens)
        axes.barh(  # type: ignore[attr-defined]  # an Axes: matplotlib is imported lazily
            slot, run.ends[i] - run.starts[i], left=run.starts[i], height=1.0, color=shade
        )
