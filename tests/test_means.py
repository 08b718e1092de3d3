"""Means over a batch do not depend on how it was split over microbatches and ranks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.distributed import build_topology
from compass.means import Means
from tests.distributed_run import run_ranks


def test_parts_give_the_mean_of_the_whole(alone):
    @given(st.lists(st.lists(st.floats(-100, 100), min_size=1), min_size=1, max_size=5))
    def check(parts):
        means = Means()
        for part in parts:
            of_part = Means()
            of_part.add_values("x", torch.tensor(part, dtype=torch.float64))
            means.update(of_part)
        values = [value for part in parts for value in part]
        assert abs(means.reduce(alone)["x"] - sum(values) / len(values)) < 1e-9

    check()


def test_a_count_may_be_given_and_a_gradient_is_dropped(alone):
    means = Means()
    means.add("loss", torch.tensor(6.0, requires_grad=True) * 2, 3)
    means.add("loss", torch.tensor(4), torch.tensor(1))
    means.add("seconds", 2.5)
    means.add("seconds", 3.5)
    assert means.reduce(alone) == {"loss": 4.0, "seconds": 3.0}


def test_what_was_counted_nowhere_is_left_out(alone):
    means = Means()
    means.add_values("espo/ratio_low", torch.zeros(0))
    assert means.reduce(alone) == {}
    assert Means().reduce(alone) == {}


def reduce_on_a_rank(rank: int) -> dict[str, float]:
    """Each rank has a name of its own, and one more of what they share."""
    topology = build_topology(rank, 2, device=torch.device("cpu"))
    means = Means()
    means.add_values("shared", torch.arange(rank + 1.0))
    means.add(f"only/{rank}", 10.0 * rank, 2)
    if rank == 1:
        means.add("nowhere", 0.0, 0)
    return means.reduce(topology)


def test_ranks_may_hold_different_names_and_agree_on_all(tmp_path):
    first, second = run_ranks(reduce_on_a_rank, tmp_path, 2)
    assert first == second == {"shared": 1 / 3, "only/0": 0.0, "only/1": 5.0}
