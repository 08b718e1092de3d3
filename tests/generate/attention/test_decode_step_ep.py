"""Decode steps of ranks that share experts: one form for all, recorded or not, and the completions
of one rank alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.generate.attention.graphs import DecodeGraphs, GraphShape
from compass.generate.generator import Generator
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.models.policy import Policy
from tests.distributed_run import run_ranks
from tests.generate.attention.test_decode_step import make_graphs, with_decode_step
from tests.generate.test_generator_ep import CONFIG, make_requests
from tests.generate.tiny_policy import TINY, make_policy

WORLD = 4
EP = 2
SHARES = {
    "an idle rank": ["abcde", "", "abcde", ""],
    "uneven ranks": ["a", "bcde", "bcde", "a"],
    "groups of ranks that do not know each other": ["abcde", "abcde", "", ""],
}
"""The requests of each rank; ranks 0 and 1 share experts, and so do 2 and 3."""


def _rank(rank: int) -> dict[str, Any]:
    topology = build_topology(rank, WORLD, device=torch.device("cpu"), ep=EP)
    policy = build_policy(TINY, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
    written = {
        (name, recorded): _write(policy, topology, shares[rank], recorded)
        for name, shares in SHARES.items()
        for recorded in (False, True)
    }
    return {"written": written, "dropped": _dropped(topology)}


def _write(policy: Policy, topology: Topology, share: str, recorded: bool) -> dict[str, Any]:
    graphs = make_graphs(CONFIG.max_num_seqs) if recorded else None
    generator = with_decode_step(policy, topology, graphs, CONFIG)
    forms = _watch(generator)
    completions = {
        (c.prompt_id, c.sample): (list(c.token_ids), c.routed_experts.tolist(), c.logprobs)
        for c in generator.generate(make_requests(share), seed=0)
    }
    return {
        "completions": completions,
        "forms": forms,
        "num_recorded": graphs.num_recorded if graphs else 0,
    }


def _watch(generator: Generator) -> list[GraphShape | None]:
    """The form of each of the generator's steps; None for one in which somebody feeds a prompt."""
    forms: list[GraphShape | None] = []
    step = generator.runner.step

    def watched(chunks, decode):
        forms.append(decode)
        return step(chunks, decode)

    generator.runner.step = watched
    return forms


def _dropped(topology: Topology) -> int:
    """How often a rank records when its neighbour's weights move and its own do not."""
    model = torch.nn.Linear(2, 2)
    graphs = DecodeGraphs(lambda: lambda forward: forward, max_rows=4, max_length=64)
    for turn in range(3):
        if turn == 2 and topology.rank == 0:
            model.weight = torch.nn.Parameter(model.weight.detach().clone())
        graphs.follow(model, topology)
        graphs.run(GraphShape(1, 64), lambda: torch.zeros(1))
    return graphs.num_recorded


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank wrote."""
    return run_ranks(_rank, tmp_path_factory.mktemp("ranks"), WORLD)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("case", SHARES)
def test_completions_are_those_of_one_rank(case, recorded, reports, topology) -> None:
    alone = Generator(make_policy(TINY, seed=0), CONFIG, topology)
    expected = {(c.prompt_id, c.sample): c for c in alone.generate(make_requests("abcde"), seed=0)}
    for rank, report in enumerate(reports):
        written = report["written"][case, recorded]["completions"]
        assert {name for name, _ in written} == set(SHARES[case][rank])
        for name, (token_ids, routes, logprobs) in written.items():
            assert token_ids == list(expected[name].token_ids)
            assert routes == expected[name].routed_experts.tolist()
            torch.testing.assert_close(logprobs, expected[name].logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("case", SHARES)
def test_ranks_that_share_experts_take_the_same_steps_in_the_same_form(
    case, recorded, reports
) -> None:
    written = [report["written"][case, recorded] for report in reports]
    for first in (0, 2):
        forms = written[first]["forms"]
        assert forms == written[first + 1]["forms"]
        decodes = [form for form in forms if form is not None]
        assert len(decodes) > len(forms) / 2 or not forms
        assert written[first]["num_recorded"] == written[first + 1]["num_recorded"]
        assert bool(written[first]["num_recorded"]) == (recorded and bool(forms))


def test_ranks_without_work_among_their_peers_take_no_step(reports) -> None:
    written = reports[2]["written"]["groups of ranks that do not know each other", True]
    assert written["forms"] == []


def test_graphs_are_dropped_by_all_ranks_that_share_experts_and_by_no_other(reports) -> None:
    assert [report["dropped"] for report in reports] == [2, 2, 1, 1]
