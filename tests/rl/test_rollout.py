"""Groups come together whatever their verifiers do and whoever writes them, and grow while others
still decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.scheduler import Step
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.pool.worker import Verify
from compass.gym.rewards.config import RewardConfig
from compass.mailbox import Mailbox
from compass.metrics import Stopwatch
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, init_policy, local_part
from compass.models.specs import ModelSpec
from compass.rl.encoded_prompts import EncodedPrompts
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.shares import Share, share_rollouts, whole_groups
from compass.rl.rollout import GrowingGroups, rollout
from compass.rl.writer import RolloutWriter
from compass.rl.zero_variance.expand import Ladder
from compass.rl.zero_variance.growth import Growth, PlanGrowth
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, RolloutGroup, SamplingParams
from tests.distributed_run import run_ranks
from tests.rl.rollout_verifiers import obey, obey_late
from tests.tiny_batch import SPEC

GROUP_SIZE, GROWN_SIZE = 4, 10
MOE = replace(SPEC, vocab_size=320)
DENSE = replace(MOE, num_experts=0, top_k=0, dense_layers=())


def prompt_of(answer: str, name: str) -> Prompt:
    return Prompt(
        id=f"{answer}/{name}", messages=({"role": "user", "content": name},), answer=answer
    )


def grow_if_flat(prompts: Sequence[Prompt]) -> Growth:
    """Any flat group grows, by one rung."""
    ladder = Ladder(base=GROUP_SIZE, right=(GROWN_SIZE,), wrong=(GROWN_SIZE,))
    return Growth({prompt.id: ladder for prompt in prompts}, "base")


def scattered(prompts: Sequence[Prompt], group_size: int, *, world_size: int) -> list[Share]:
    """Every group split: its last sample is written at home, the others on the next ranks."""
    return [
        Share(
            prompt=prompt,
            home=p % world_size,
            writer=(p + 1 + sample) % world_size,
            first_sample=sample,
            num_samples=1,
            priority=sample,
        )
        for p, prompt in enumerate(prompts)
        for sample in range(group_size)
    ]


def all_on_the_last(prompts: Sequence[Prompt], group_size: int, *, world_size: int) -> list[Share]:
    """One rank writes everything; the others have nothing to do until a group grows."""
    shares = whole_groups(prompts, group_size, world_size=world_size)
    return [replace(share, writer=world_size - 1) for share in shares]


def queued(prompts: Sequence[Prompt], group_size: int, *, world_size: int) -> list[Share]:
    """Nobody knows beforehand who will write what."""
    return share_rollouts(
        prompts,
        [float(len(prompt.id)) for prompt in prompts],
        group_size=group_size,
        world_size=world_size,
        balance="queue",
    )


class Writers:
    """What a rank needs to roll out, made once."""

    def __init__(
        self,
        topology: Topology,
        tokenizer_directory: Path,
        spec: ModelSpec = MOE,
        weight: float | None = None,
        verify: Verify | None = obey,
        timeout_seconds: float = 0.5,
        rewards: dict[str, RewardConfig] | None = None,
    ):
        """`weight`: of every entry of the output projection. `rewards`: instead of `verify`."""
        self.topology = topology
        tokenizer = Tokenizer.from_dir(tokenizer_directory)
        policy = build_policy(spec, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
        if weight is not None:
            local_part(policy.lm_head.weight).detach().fill_(weight)
        self.generator = Generator(policy, GeneratorConfig(max_num_seqs=6, num_blocks=40), topology)
        self.pool = VerifierPool(
            PoolConfig(num_workers=1, timeout_seconds=timeout_seconds, rewards=rewards or {}),
            tokenizer_directory=tokenizer_directory,
            stop_token_ids=tokenizer.stop_token_ids,
            verify=None if rewards else verify,
        )
        self.writer = RolloutWriter(
            generator=self.generator,
            pool=self.pool,
            encoded=EncodedPrompts(tokenizer),
            mailbox=Mailbox(topology),
            sampling=SamplingParams(
                max_completion_tokens=12, stop_token_ids=tokenizer.stop_token_ids
            ),
        )

    def roll_out(
        self,
        prompts: list[Prompt],
        *,
        share=whole_groups,
        group_size: int = GROUP_SIZE,
        growth: PlanGrowth | None = grow_if_flat,
        in_waves: bool = False,
    ) -> tuple[list[RolloutGroup], RankRollouts]:
        written = RankRollouts(self.topology.rank)
        groups = rollout(
            self.writer,
            prompts,
            share=partial(share, world_size=self.topology.world_size),
            group_size=group_size,
            seed=7,
            written=written,
            stopwatch=Stopwatch(),
            growth=growth,
            in_waves=in_waves,
        )
        return groups, written


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return directory


def token_lists(group: RolloutGroup, written: RankRollouts) -> list[list[int]]:
    return [written[r.slot].token_ids.tolist() for r in group.rollouts]


def test_a_group_that_grew_is_the_group_that_was_asked_for_at_once(
    alone: Topology, tokenizer_directory: Path
) -> None:
    prompts = [prompt_of("wrong", "1+1"), prompt_of("length", "2+2"), prompt_of("right", "3")]
    writers = Writers(alone, tokenizer_directory)
    with writers.pool:
        groups, written = writers.roll_out(prompts)
        at_once, at_once_written = writers.roll_out(prompts, group_size=GROWN_SIZE, growth=None)
    assert [g.prompt.id for g in groups] == [p.id for p in prompts]
    sizes = [len(g.rollouts) for g in groups]
    assert sizes[0] == sizes[2] == GROWN_SIZE
    assert sizes[1] == GROUP_SIZE, "some texts are of even length and some are not"
    for group, larger, size in zip(groups, at_once, sizes, strict=True):
        assert (group.weight, group.count) == (GROUP_SIZE / size, GROUP_SIZE / size)
        assert (larger.weight, larger.count) == (1, 1)
        assert [r.sample for r in group.rollouts] == list(range(size))
        assert token_lists(group, written) == token_lists(larger, at_once_written)[:size]
    assert len(written) == len(written.end_seconds) == sum(sizes)


# ---- what it asks of the store


class CountingStore:
    """A store that counts how often it is asked for news."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.num_questions = 0

    def check(self, keys: list[str]) -> bool:
        self.num_questions += 1
        return self._store.check(keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(("may_grow", "expected"), [(True, 1000 // 16), (False, 0)])
def test_a_rank_that_decodes_seldom_asks_for_scores_of_others(
    may_grow: bool, expected: int, alone: Topology, tokenizer_directory: Path
) -> None:
    """A thousand generator steps during which another rank, which writes everything, says nothing.
    Once there is nothing else to do, each wait ends in a look."""
    prompt = prompt_of("wrong", "1+1")
    share = Share(prompt=prompt, home=0, writer=1, first_sample=0, num_samples=4, priority=0)
    mailbox = Mailbox(alone)
    mailbox._store = store = CountingStore(mailbox._store)  # type: ignore[assignment]
    writers = Writers(alone, tokenizer_directory)
    with writers.pool:
        writer = replace(writers.writer, mailbox=mailbox)
        groups = GrowingGroups(
            writer,
            RankRollouts(0),
            [share],
            writer.sampling,
            growth=grow_if_flat([prompt] if may_grow else []),
        )
        for _ in range(1000):
            assert groups.take() == []
        assert store.num_questions == expected
        for _ in range(3):
            groups.wait(0.001)
            groups.take()
    assert store.num_questions == expected + 3


# ---- bits


def bits_of_a_rollout(writers: Writers, *, in_waves: bool) -> tuple[Any, list[Any]]:
    """All that a rollout leaves on this rank, to the bit, and what was decoded beside what."""
    batches: list[Any] = []
    step = writers.generator.runner.step

    def step_and_note(plan: Step, *agreed: Any) -> torch.Tensor:
        batches.append(
            [(c.sequence.request.prompt_id, c.sequence.sample, *c[1:]) for c in plan.chunks]
        )
        return step(plan, *agreed)

    writers.generator.runner.step = step_and_note  # type: ignore[method-assign]
    groups, written = writers.roll_out(BATCHES["growing"], growth=grow_twice, in_waves=in_waves)
    writers.generator.runner.step = step  # type: ignore[method-assign]
    tokens = [
        (t.token_ids.tolist(), t.rollout_logprobs.numpy().tobytes(), t.routed_experts.tolist())
        for t in written
    ]
    light = [[replace(r, score=replace(r.score, seconds=0.0)) for r in g.rollouts] for g in groups]
    return (tokens, light, [(g.weight, g.count) for g in groups]), batches


def grow_twice(prompts: Sequence[Prompt]) -> Growth:
    sizes = (2 * GROUP_SIZE, 3 * GROUP_SIZE)
    ladder = Ladder(base=GROUP_SIZE, right=sizes, wrong=sizes)
    return Growth({prompt.id: ladder for prompt in prompts}, "base")


def bits_on_a_rank(rank: int, world_size: int, ep: int, directory: Path) -> list[Any]:
    topology = build_topology(rank, world_size, device=torch.device("cpu"), ep=ep)
    writers = Writers(topology, directory, verify=obey_late, timeout_seconds=60.0)
    with writers.pool:
        return [bits_of_a_rollout(writers, in_waves=True) for _ in range(3)]


@pytest.mark.parametrize(("world_size", "ep"), [(1, 1), (2, 2)])
def test_in_waves_no_bit_depends_on_when_a_verdict_came(
    world_size: int, ep: int, tokenizer_directory: Path, tmp_path: Path
) -> None:
    """Every verdict is late by a time of its own, drawn anew in each of three rollouts."""
    ranks = run_ranks(bits_on_a_rank, tmp_path, world_size, world_size, ep, tokenizer_directory)
    for first, *others in ranks:
        assert others == [first, first]
    sizes = {
        len(rollouts)
        for (_, light, _), _ in (of_rank[0] for of_rank in ranks)
        for rollouts in light
    }
    assert 3 * GROUP_SIZE in sizes


# ---- several ranks

BATCHES = {
    "growing": [prompt_of("wrong", "1+1"), prompt_of("length", "2+2"), prompt_of("right", "5-2")],
    "one prompt": [prompt_of("length", "7")],
    # More than there are seats on three ranks.
    "many": [prompt_of("length", "8" * n) for n in range(1, 9)],
}
SHARES = {
    "whole": whole_groups,
    "scattered": scattered,
    "lopsided": all_on_the_last,
    "queue": queued,
}
WORLDS = {"two ranks": (2, 1), "two ranks, experts split": (2, 2), "three ranks": (3, 1)}


def read(groups: list[RolloutGroup], topology: Topology, written: RankRollouts) -> dict[str, Any]:
    """Every rollout of all ranks: its light record, and its tokens where they are held."""
    tokens = topology.all_gather_object(
        [(t.token_ids.tolist(), t.routed_experts.tolist()) for t in written]
    )
    light = topology.all_gather_object(groups)
    return {
        group.prompt.id: [
            (
                *(r.sample, r.score.verdict, r.score.valid, r.repetition, r.finish_reason),
                *(r.num_prompt_tokens, r.num_completion_tokens, *tokens[r.holder][r.slot]),
            )
            for r in group.rollouts
        ]
        for of_rank in light
        for group in of_rank
    }


def on_a_rank(
    rank: int, world_size: int, ep: int, tokenizer_directory: Path
) -> dict[tuple[str, str], Any]:
    topology = build_topology(rank, world_size, device=torch.device("cpu"), ep=ep)
    writers = Writers(topology, tokenizer_directory)
    found = {}
    with writers.pool:
        for name, prompts in BATCHES.items():
            for kind, share in SHARES.items():
                groups, written = writers.roll_out(prompts, share=share)
                found[name, kind] = read(groups, topology, written)
                assert [g.prompt.id for g in groups] == [p.id for p in prompts][rank::world_size]
                found[name, kind, "num_written"] = topology.all_gather_object(len(written))
        hung, _ = writers.roll_out(
            [prompt_of("hang", "9"), prompt_of("wrong", "4")], share=scattered
        )
        found["hung"] = topology.all_gather_object(hung)
    return found


def test_groups_are_those_of_one_rank_whoever_writes_them(
    alone: Topology, tokenizer_directory: Path, tmp_path: Path
) -> None:
    writers = Writers(alone, tokenizer_directory)
    with writers.pool:
        expected = {
            name: read(*((lambda g, w: (g, alone, w))(*writers.roll_out(prompts))))
            for name, prompts in BATCHES.items()
        }
    assert {len(group) for group in expected["growing"].values()} == {GROUP_SIZE, GROWN_SIZE}
    for world_size, ep in WORLDS.values():
        for found in run_ranks(
            on_a_rank, tmp_path, world_size, world_size, ep, tokenizer_directory
        ):
            for name in BATCHES:
                for kind in SHARES:
                    assert found[name, kind] == expected[name], (world_size, ep, name, kind)
                num_written = found[name, "lopsided", "num_written"]
                assert num_written[-1] >= GROUP_SIZE * len(BATCHES[name])
            assert found["one prompt", "lopsided", "num_written"] == [0] * (world_size - 1) + [4]
            assert min(found["many", "queue", "num_written"]) >= 6, "each rank fills its seats"
            hung = {g.prompt.id: g for of_rank in found["hung"] for g in of_rank}["hang/9"]
            assert [r.sample for r in hung.rollouts] == list(range(GROWN_SIZE))
            valid = [r.score.valid for r in hung.rollouts]
            assert any(valid)
            assert not all(valid), "some verifiers hung and were killed"


def overflow_on_a_rank(rank: int, world_size: int, ep: int, tokenizer_directory: Path) -> str:
    """One rank alone has something to write, with weights that give it no finite logit."""
    topology = build_topology(rank, world_size, device=torch.device("cpu"), ep=ep)
    writers = Writers(topology, tokenizer_directory, weight=3e38)
    with writers.pool, pytest.raises(UserError) as raised:
        writers.roll_out([prompt_of("right", "1")], share=all_on_the_last)
    return str(raised.value)


@pytest.mark.parametrize("ep", [1, 2])
def test_logits_that_are_not_finite_end_the_rollout_on_every_rank(
    ep: int, tokenizer_directory: Path, tmp_path: Path
) -> None:
    first, second = run_ranks(overflow_on_a_rank, tmp_path, 2, 2, ep, tokenizer_directory)
    assert first == second
    assert first.startswith("prompt 'right/1', sample ")


# ---- rewards that look at whole groups

GROUP_REWARD = """
from pathlib import Path

def obeyed(completion, answer):
    return float(answer == "right")

def place(prompts, completions, completion_ids, answer, trainer_state):
    text = prompts[0][0]["content"]
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(f"{text} {len(completions)} {trainer_state.global_step}\\n")
    if text == "fails":
        raise KeyError("nothing")
    order = sorted(range(len(completion_ids)), key=lambda i: (sum(completion_ids[i]), i))
    return [order.index(i) / 100 for i in range(len(order))]
"""
"""Whether the answer says `right`, and the place among all completions by the sum of the ids."""
LOOKED_AT = [
    replace(prompt_of(answer, name), domain="own")
    for answer, name in (("right", "grows"), ("wrong", "grows too"), ("right", "fails"))
]


def looked_at_on_a_rank(
    rank: int, world_size: int, directory: Path, own: Path, in_waves: bool
) -> list[Any]:
    topology = build_topology(rank, world_size, device=torch.device("cpu"), ep=1)
    rewards = {
        "obeyed": RewardConfig(fn=f"{own}:obeyed", domains=("own",), verdict=True),
        "place": RewardConfig(fn=f"{own}:place", domains=("own",)),
    }
    writers = Writers(topology, directory, rewards=rewards, timeout_seconds=60.0)
    with writers.pool:
        groups, written = writers.roll_out(LOOKED_AT, share=scattered, in_waves=in_waves)
    tokens = topology.all_gather_object([t.token_ids.tolist() for t in written])
    return [
        (
            group.prompt.messages[0]["content"],
            [tokens[r.holder][r.slot][r.num_prompt_tokens :] for r in group.rollouts],
            [r.score for r in group.rollouts],
        )
        for of_rank in topology.all_gather_object(groups)
        for group in of_rank
    ]


@pytest.mark.parametrize("in_waves", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_group_reward_sees_all_completions_at_each_rung_and_its_last_word_counts(
    world_size: int, in_waves: bool, tokenizer_directory: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text(GROUP_REWARD)
    found, *_ = run_ranks(
        looked_at_on_a_rank, tmp_path, world_size, world_size, tokenizer_directory, own, in_waves
    )
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    assert calls == [
        "fails 4 0",
        *("grows 10 0", "grows 4 0"),
        *("grows too 10 0", "grows too 4 0"),
    ]
    for name, completions, scores in found:
        if name == "fails":
            assert [s.valid for s in scores] == [False] * GROUP_SIZE
            assert all(s.reason.startswith("reward place: KeyError") for s in scores)
            continue
        assert len(scores) == GROWN_SIZE
        right = float(name == "grows")
        order = sorted(range(GROWN_SIZE), key=lambda i: (sum(completions[i]), i))
        places = [order.index(i) / 100 for i in range(GROWN_SIZE)]
        assert [s.reward for s in scores] == [right + place for place in places]
        assert [s.verdict for s in scores] == [right] * GROWN_SIZE
