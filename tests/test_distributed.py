"""Ranks agree: on their places, on mistakes, and on how the program ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch

from compass.distributed import (
    ParallelConfig,
    Topology,
    build_topology,
    init_topology,
    launch,
    raised_together,
)
from compass.errors import FailedRunError, UserError
from tests.distributed_run import exit_codes, run_ranks


def topology_of(rank: int, world_size: int = 2, **options: Any) -> Topology:
    return build_topology(rank, world_size, device=torch.device("cpu"), **options)


# ---- places


def places(rank: int) -> dict[str, object]:
    sharded = topology_of(rank, 4, ep=2)
    hybrid = topology_of(rank, 4, ep=1, dp_replicate=2)
    both = topology_of(rank, 4, ep=2, dp_replicate=2)
    assert sharded.ep_mesh is not None
    assert both.ep_mesh is not None
    return {
        "ep peers": sharded.ep_mesh.mesh.tolist(),
        "expert shards": sharded.expert_fsdp_mesh.mesh.tolist(),
        "dense shards": sharded.dense_mesh.mesh.tolist(),
        "hybrid dense": hybrid.dense_mesh.mesh.tolist(),
        "hybrid experts": hybrid.expert_fsdp_mesh.mesh.tolist(),
        "hybrid has ep": hybrid.ep_mesh is not None,
        "both: expert shards": both.expert_fsdp_mesh.mesh.tolist(),
        "both: ep peers": both.ep_mesh.mesh.tolist(),
        "any": [sharded.any(rank == 3), sharded.any(False)],
        "max": sharded.max_int(10 - rank),
        "sum": sharded.all_reduce_sum(torch.tensor([1, rank])).tolist(),
        "gathered": sharded.all_gather_object(rank * "x"),
        "sent": sharded.all_to_all_object([(rank, to) for to in range(sharded.world_size)]),
        "is main": sharded.is_main,
    }


def test_expert_parallel_peers_are_neighbours_and_meshes_cover_the_world(tmp_path):
    ranks = run_ranks(places, tmp_path, 4)
    for rank, seen in enumerate(ranks):
        pair, stride = rank // 2 * 2, rank % 2
        assert seen["ep peers"] == seen["both: ep peers"] == [pair, pair + 1]
        assert seen["expert shards"] == [stride, stride + 2]
        assert seen["dense shards"] == [0, 1, 2, 3]
        assert seen["hybrid dense"] == seen["hybrid experts"] == [[0, 1], [2, 3]]
        assert seen["both: expert shards"] == [[stride], [stride + 2]]
        assert not seen["hybrid has ep"]
        assert seen["any"] == [True, False]
        assert seen["max"] == 10
        assert seen["sum"] == [4, 6]
        assert seen["gathered"] == ["", "x", "xx", "xxx"]
        assert seen["sent"] == [(sender, rank) for sender in range(4)]
        assert seen["is main"] == (rank == 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ParallelConfig(ep=2, device="cpu"), r"ep=2 does not divide the world size 1"),
        (ParallelConfig(ep=0, device="cpu"), r"parallel\.ep=0 must be at least 1"),
        (ParallelConfig(dp_replicate=3, device="cpu"), r"dp_replicate=3 times .* world size 1"),
    ],
)
def test_degrees_that_do_not_divide_the_world_are_the_users_mistake(config, message):
    with pytest.raises(UserError, match=message):
        init_topology(config)


def group_timeouts(rank: int) -> list[float]:
    both = topology_of(rank, 4, ep=2, dp_replicate=2, timeout=timedelta(seconds=77))
    assert both.ep_mesh is not None
    meshes = (both.ep_mesh, both.expert_fsdp_mesh, both.dense_mesh)
    groups = [group for mesh in meshes for group in mesh.get_all_groups()]
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    return [backend.options._timeout.total_seconds() for backend in backends]


def test_every_group_waits_as_long_as_the_configuration_says(tmp_path):
    """Also those smaller than the world, which torch would give half an hour."""
    assert run_ranks(group_timeouts, tmp_path, 4) == [[77.0] * 5] * 4


# ---- mistakes


def share_mistakes(rank: int) -> list[str]:
    topology = topology_of(rank)
    seen = []
    for culprits in ((1,), (0, 1), ()):
        try:
            with raised_together(topology):
                if rank in culprits:
                    raise UserError(f"rank {rank} cannot read its file")
            seen.append("fine")
        except UserError as error:
            seen.append(str(error))
    return seen


def test_a_mistake_seen_by_one_rank_is_raised_on_all(tmp_path):
    for seen in run_ranks(share_mistakes, tmp_path, 2):
        assert seen == ["rank 1 cannot read its file", "rank 0 cannot read its file", "fine"]


def test_what_is_not_the_users_mistake_passes_through_unchanged(alone):
    with pytest.raises(ZeroDivisionError), raised_together(alone):
        _ = 1 / 0


# ---- how a program ends


def fine() -> None:
    pass


def mistaken() -> None:
    raise UserError("no such file:\n  prompts.jsonl")


def failed() -> None:
    raise FailedRunError("nothing was learned")


def broken() -> None:
    raise RuntimeError("ours")


@pytest.mark.parametrize(("main", "code"), [(fine, 0), (mistaken, 2), (failed, 1), (broken, 1)])
def test_a_program_without_ranks_ends_with_its_code(main: Callable[[], None], code: int, capsys):
    with pytest.raises(SystemExit) as end:
        launch(main)
    assert end.value.code == code
    printed = capsys.readouterr().err
    if main is mistaken:
        assert printed == "error: no such file: prompts.jsonl\n"
    if main is failed:
        assert printed == "error: nothing was learned\n"
    assert ("RuntimeError: ours" in printed) == (main is broken)


def mistake_on_rank_one(rank: int) -> None:
    def main() -> None:
        with raised_together(topology_of(rank)):
            if rank == 1:
                raise UserError("rank 1 cannot read its file")

    launch(main)


def crash_on_rank_one(rank: int) -> None:
    """Rank 0 is inside a collective that will never end."""

    def main() -> None:
        topology = topology_of(rank)
        if rank == 1:
            raise RuntimeError("ours")
        topology.barrier()

    launch(main)


def test_a_mistake_ends_every_rank_with_code_2(tmp_path):
    assert exit_codes(mistake_on_rank_one, tmp_path, 2) == [2, 2]


def test_a_crash_ends_its_rank_at_once_and_the_waiting_ones_with_it(tmp_path):
    assert exit_codes(crash_on_rank_one, tmp_path, 2) == [1, 1]
