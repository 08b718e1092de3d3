"""Scoring begins when a rollout ends, not when the batch does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compass.distributed import Topology
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.mailbox import Mailbox
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy
from compass.rl.encoded_prompts import EncodedPrompts
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.shares import whole_groups
from compass.rl.rollout import GrowingGroups
from compass.rl.writer import RolloutWriter
from compass.rl.zero_variance.expand import Ladder
from compass.rl.zero_variance.growth import Growth
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, RolloutGroup, SamplingParams
from tests.rl.rollout_verifiers import obey
from tests.tiny_batch import SPEC


@pytest.mark.parametrize("num_seqs", [1, 4], ids=["one after the other", "together"])
def test_each_completion_can_be_scored_before_the_next_is_taken(
    alone: Topology, tmp_path: Path, num_seqs: int
) -> None:
    write_byte_tokenizer(tmp_path)
    spec = replace(SPEC, vocab_size=320)
    policy = build_policy(spec, alone, PolicyConfig(), lambda policy: init_policy(policy, 0))
    generator = Generator(policy, GeneratorConfig(max_num_seqs=num_seqs, num_blocks=40), alone)
    prompts = [
        Prompt(id=name, messages=({"role": "user", "content": name},), answer="right")
        for name in "abcd"
    ]
    scored: list[str] = []

    class Noticing(Growth):
        def further(self, group: RolloutGroup) -> int:
            scored.append(group.prompt.id)
            return 0

    with VerifierPool(PoolConfig(num_workers=1), tokenizer_directory=tmp_path, verify=obey) as pool:
        writer = RolloutWriter(
            generator=generator,
            pool=pool,
            encoded=EncodedPrompts(Tokenizer.from_dir(tmp_path)),
            mailbox=Mailbox(alone),
            sampling=SamplingParams(max_completion_tokens=8),
        )
        groups = GrowingGroups(
            writer,
            RankRollouts(alone.rank),
            whole_groups(prompts, 1, world_size=1),
            writer.sampling,
            growth=Noticing({name: Ladder(base=1, right=(2,)) for name in "abcd"}),
        )
        ended: list[str] = []
        for completion in generator.generate([], seed=0, source=groups):
            groups.add(completion)
            ended.append(completion.prompt_id)
            while len(scored) < len(ended):  # nothing of the batch is needed but what has ended
                groups.wait(60.0)
                assert groups.take() == []
            assert scored == ended
        assert [group.prompt.id for group in groups.finish(alone)] == list("abcd")
