"""Two ranks report and pack as one does, also when one of them has nothing to train on."""

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import PackConfig
from compass.rl.report import batch_metrics
from compass.rl.sampler import rank_share
from compass.types import RolloutGroup
from tests.distributed_run import run_ranks
from tests.rl.batches import make_group, make_rollout, make_score, pack_batch, tokens_of

WORLD = 2
LENGTHS = {"even": [3, 5, 2, 4, 6, 1, 3, 2], "one": [9], "lone": [9], "none": []}
"""Completion lengths of the groups of a batch; groups are dealt to ranks in turn. The lone group
has one rollout, the others two."""


def make_batch(name: str) -> list[RolloutGroup]:
    samples = range(1 if name == "lone" else 2)
    return [
        make_group(
            str(g),
            [make_rollout(f"{g}/{i}", 2, n, score=make_score(i + g % 2)) for i in samples],
        )
        for g, n in enumerate(LENGTHS[name])
    ]


def report(groups: list[RolloutGroup], topology: Topology) -> dict:
    """All that is reduced over ranks."""
    cfg = PackConfig(num_minibatches=2, max_tokens_per_microbatch=12)
    advantages = [
        [1.0, -1.0][: len(g.rollouts)] if g.prompt.id != "3" else [0.0, 0.0] for g in groups
    ]
    numbers = [int(group.prompt.id) for group in groups]
    minibatches = pack_batch(groups, advantages, topology, cfg, numbers=numbers).minibatches
    tokens = [tokens_of(r) for g in groups for r in g.rollouts]
    logprobs = [t.rollout_logprobs[t.loss_mask] for t in tokens]
    return {
        "counts": [(m.num_rollouts, m.num_tokens, m.num_trained_rollouts) for m in minibatches],
        "microbatches": [len(m.microbatches) for m in minibatches],
        "fillers": sum(not len(m.rows) for b in minibatches for m in b.microbatches),
        "batch": batch_metrics(groups, topology),
        "mismatch": mismatch_metrics([1.1 * x for x in logprobs], logprobs, topology),
    }


def report_of_rank(rank: int) -> dict[str, dict]:
    topology = build_topology(rank, WORLD, device=torch.device("cpu"))
    return {name: report(rank_share(make_batch(name), rank, WORLD), topology) for name in LENGTHS}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict[str, dict]]:
    return run_ranks(report_of_rank, tmp_path_factory.mktemp("ranks"), WORLD)


@pytest.mark.parametrize("name", LENGTHS)
def test_what_is_reduced_is_that_of_one_rank(name, by_rank, topology):
    alone = report(make_batch(name), topology)
    for rank in by_rank:
        assert rank[name]["batch"] == pytest.approx(alone["batch"], nan_ok=True)
        assert rank[name]["mismatch"] == pytest.approx(alone["mismatch"])
        assert rank[name]["counts"] == alone["counts"]


@pytest.mark.parametrize("name", LENGTHS)
def test_every_rank_has_as_many_microbatches(name, by_rank):
    first, second = (rank[name] for rank in by_rank)
    assert first["microbatches"] == second["microbatches"]
    assert (first["fillers"], second["fillers"]) == ((0, 1) if name == "lone" else (0, 0))
    if name == "one":
        assert first["microbatches"] == [0, 1], "each rank trains one of the group's two rollouts"
