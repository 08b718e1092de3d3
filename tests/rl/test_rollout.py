"""Groups come together whatever their verifiers do, and grow while others still decode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.generate.generator import Generator, GeneratorConfig
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.pool import PoolConfig, VerifierPool
from compass.metrics import Stopwatch
from compass.models.parallel import PolicyConfig, build_policy, init_policy
from compass.rl.rollout import Grow, rollout
from compass.tokenizer import Tokenizer
from compass.types import Prompt, RolloutGroup, SamplingParams
from tests.distributed_run import run_ranks
from tests.rl.rollout_verifiers import obey
from tests.tiny_batch import SPEC

GROUP_SIZE, GROWN_SIZE = 4, 10


def prompt_of(answer: str, name: str) -> Prompt:
    return Prompt(
        id=f"{answer}/{name}", messages=({"role": "user", "content": name},), answer=answer
    )


def grow_if_flat(group: RolloutGroup) -> int:
    flat = group.is_flat and len(group.rollouts) < GROWN_SIZE
    return GROWN_SIZE - len(group.rollouts) if flat else 0


def roll_out(
    topology: Topology,
    prompts: list[Prompt],
    tokenizer_directory: Path,
    *,
    group_size: int = GROUP_SIZE,
    grow: Grow | None = grow_if_flat,
) -> list[RolloutGroup]:
    tokenizer = Tokenizer.from_dir(tokenizer_directory)
    spec = replace(SPEC, vocab_size=320)
    policy = build_policy(spec, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
    generator = Generator(policy, GeneratorConfig(max_num_seqs=6, num_blocks=40), topology)
    pool = VerifierPool(
        PoolConfig(num_workers=1, timeout_seconds=0.5),
        tokenizer_directory=tokenizer_directory,
        stop_token_ids=tokenizer.stop_token_ids,
        verify=obey,
    )
    with pool:
        return rollout(
            generator,
            pool,
            tokenizer,
            prompts,
            SamplingParams(max_completion_tokens=12, stop_token_ids=tokenizer.stop_token_ids),
            group_size=group_size,
            seed=7,
            stopwatch=Stopwatch(),
            grow=grow,
        )


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return directory


def token_lists(group: RolloutGroup) -> list[list[int]]:
    return [r.token_ids.tolist() for r in group.rollouts]


def test_a_group_that_grew_is_the_group_that_was_asked_for_at_once(
    alone: Topology, tokenizer_directory: Path
) -> None:
    prompts = [prompt_of("wrong", "1+1"), prompt_of("length", "2+2"), prompt_of("right", "3")]
    groups = roll_out(alone, prompts, tokenizer_directory)
    whole = roll_out(alone, prompts, tokenizer_directory, group_size=GROWN_SIZE, grow=None)
    assert [g.prompt.id for g in groups] == [p.id for p in prompts]
    sizes = [len(g.rollouts) for g in groups]
    assert sizes[0] == sizes[2] == GROWN_SIZE
    assert sizes[1] == GROUP_SIZE, "some texts are of even length and some are not"
    for group, at_once, size in zip(groups, whole, sizes, strict=True):
        assert [r.sample for r in group.rollouts] == list(range(size))
        assert token_lists(group) == token_lists(at_once)[:size]


def on_two_ranks(rank: int, tokenizer_directory: Path) -> list[tuple[str, list[tuple[int, bool]]]]:
    topology = build_topology(rank, 2, device=torch.device("cpu"), ep=2)
    prompts = (
        [prompt_of("wrong", "1+1"), prompt_of("wrong", "5-2")],
        [prompt_of("length", "2+2"), prompt_of("hang", "9")],
    )[rank]
    groups = roll_out(topology, prompts, tokenizer_directory)
    everyone_wrong = [prompt_of("wrong", f"{rank}")]
    groups += roll_out(topology, everyone_wrong, tokenizer_directory)
    groups += roll_out(topology, [] if rank else everyone_wrong, tokenizer_directory)
    return [(g.prompt.id, [(r.sample, r.score.valid) for r in g.rollouts]) for g in groups]


def test_ranks_with_unlike_shares_of_flat_groups_and_hanging_verifiers_finish_together(
    tmp_path: Path, tokenizer_directory: Path
) -> None:
    flat_rank, other_rank = run_ranks(on_two_ranks, tmp_path, 2, tokenizer_directory)
    assert [len(rollouts) for _, rollouts in flat_rank] == [GROWN_SIZE] * 4
    sizes = {prompt_id: len(rollouts) for prompt_id, rollouts in other_rank}
    assert sizes == {"length/2+2": GROUP_SIZE, "hang/9": GROWN_SIZE, "wrong/1": GROWN_SIZE}
    hung = dict(other_rank)["hang/9"]
    assert [sample for sample, _ in hung] == list(range(GROWN_SIZE))
    assert any(valid for _, valid in hung)
    assert not all(valid for _, valid in hung), "some verifiers hung and were killed"
