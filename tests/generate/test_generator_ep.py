"""Expert parallelism: ranks step together, and completions are those of one rank."""

from dataclasses import replace

import pytest
import torch

from compass.distributed import build_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.types import SamplingParams
from tests.distributed_run import run_ranks
from tests.generate.tiny_policy import TINY, make_policy

WORLD = 2
CONFIG = GeneratorConfig(block_size=4, num_blocks=14, max_num_seqs=5)


def make_requests(names: str) -> list[Request]:
    """One request for each letter, whose code decides prompt, samples and length."""
    return [
        Request(
            prompt_id=name,
            prompt_token_ids=[(ord(name) * j) % 61 for j in range(3 + ord(name) % 9)],
            num_samples=1 + ord(name) % 4,
            sampling=SamplingParams(max_completion_tokens=5 + 5 * (ord(name) % 5)),
        )
        for name in names
    ]


LAYOUTS = {
    "an idle rank": (2, ["abcde", ""]),
    "uneven ranks": (2, ["a", "bcde"]),
    "data parallel only": (1, ["abc", "de"]),
}
"""Expert-parallel degree, and the requests of each rank."""


def _rank(rank: int) -> dict:
    return {name: _report(rank, ep, shares[rank]) for name, (ep, shares) in LAYOUTS.items()}


def _report(rank: int, ep: int, share: str) -> dict:
    topology = build_topology(rank, WORLD, device=torch.device("cpu"), ep=ep)
    policy = build_policy(TINY, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
    generator = Generator(policy, CONFIG, topology)
    written = [
        [c.prompt_id, c.sample, list(c.token_ids), c.routed_experts.tolist()]
        for c in generator.generate(make_requests(share), seed=0)
    ]
    requests = make_requests("a")
    if rank == 1:
        requests = [replace(requests[0], prompt_token_ids=[1] * 64)]
    try:
        generator.generate(requests, seed=0)
        refusal = "none"
    except UserError as error:
        refusal = str(error)
    return {"written": written, "refusal": refusal}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    """What each rank wrote, by layout."""
    return run_ranks(_rank, tmp_path_factory.mktemp("ranks"), WORLD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_completions_do_not_depend_on_how_ranks_share_the_work(layout, reports, topology) -> None:
    generator = Generator(make_policy(TINY, seed=0), CONFIG, topology)
    expected = {
        (c.prompt_id, c.sample): [list(c.token_ids), c.routed_experts.tolist()]
        for c in generator.generate(make_requests("abcde"), seed=0)
    }
    got = {
        (name, sample): rest
        for report in reports
        for name, sample, *rest in report[layout]["written"]
    }
    assert got == expected
    _, shares = LAYOUTS[layout]
    for report, share in zip(reports, shares, strict=True):
        assert {name for name, *_ in report[layout]["written"]} == set(share)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_request_refused_on_one_rank_is_refused_on_all(layout, reports) -> None:
    for report in reports:
        assert "'a' has 64 tokens" in report[layout]["refusal"]
