"""The stages together: what a step's groups are told, and that its account adds up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from compass.distributed import Topology
from compass.errors import UserError
from compass.rl.curriculum import Stage, eligible
from compass.rl.zero_variance.expand import ExpandConfig
from compass.rl.zero_variance.growth import Growth
from compass.rl.zero_variance.history import PrefilterConfig
from compass.rl.zero_variance.reshape import ReshapeConfig
from compass.rl.zero_variance.residual import ResidualConfig
from compass.rl.zero_variance.stages import ZeroVarianceConfig, ZeroVarianceStages
from compass.types import Prompt, RolloutGroup
from tests.tiny_batch import random_tokens, rollout_of

OFF = ZeroVarianceConfig(
    prefilter=PrefilterConfig(enabled=False),
    expand=ExpandConfig(enabled=False),
    reshape=ReshapeConfig(enabled=False),
    residual=ResidualConfig(enabled=False),
)


def stages(cfg: ZeroVarianceConfig, group_size: int = 2) -> ZeroVarianceStages:
    return ZeroVarianceStages(cfg, seed=0, group_size=group_size, completion_limits=(64,))


def group(name: str, verdicts: list[float | None]) -> RolloutGroup:
    """Rollouts of unlike lengths with these verdicts; None for a verifier that failed."""
    rollouts = [
        rollout_of(random_tokens(seed=sample), name, sample, verdict)
        for sample, verdict in enumerate(verdicts)
    ]
    return RolloutGroup(prompt=Prompt(id=name, messages=()), rollouts=tuple(rollouts))


def growth_of(run: ZeroVarianceStages, groups: Sequence[RolloutGroup]) -> Growth:
    """Where a completion is expected to take ten tokens."""
    return run.growth([g.prompt for g in groups], expected_tokens=lambda _: 10.0)


GROUPS = [
    group("differs", [1.0, 0.0]),
    group("expanded", [0.0, 0.0, 0.0, 1.0]),
    group("right", [1.0, 1.0]),
    group("wrong", [0.0, 0.0, 0.0, 0.0]),
    group("broken", [None, None]),
]


def test_each_group_is_saved_by_the_first_stage_that_helps_it(alone: Topology) -> None:
    run = stages(ZeroVarianceConfig(reshape=ReshapeConfig(beta=0.05)))
    rewards = [run.rewards(g) for g in GROUPS]
    signs = [run.flat_sign(g, r) for g, r in zip(GROUPS, rewards, strict=True)]
    # The all-right group differs by length; the all-wrong one is RL-ZVP's; nobody saves the last.
    assert signs == [0, 0, 0, -1, 0]
    seconds = {"rollout": 8.0, "update": 4.0}
    step = run.account(GROUPS, rewards, alone, num_skipped=3, seconds=seconds)
    saved = {stage: step[stage, "saved"] for stage in ("prefilter", "base", "expand")}
    assert saved == {"prefilter": 3, "base": 1, "expand": 1}
    assert (step["reshape", "saved"], step["residual", "saved"]) == (1, 1)
    assert step["residual", "out"] == 1
    written = sum(r.num_completion_tokens for g in GROUPS for r in g.rollouts)
    assert step["base", "tokens"] + step["expand", "tokens"] == written
    assert step["base", "rollouts"] + step["expand", "rollouts"] == 14
    assert step["base", "seconds"] + step["expand", "seconds"] == pytest.approx(8.0)
    assert step["residual", "seconds"] == pytest.approx(1.0), "one of four trained groups"
    assert run.num_generated_tokens == written


def test_right_answers_are_left_to_the_residual_by_default() -> None:
    """However long they are: shaping would give length the sign of their advantages."""
    run = stages(ZeroVarianceConfig())
    signs = {g.prompt.id: run.flat_sign(g, run.rewards(g)) for g in GROUPS}
    assert signs == {"differs": 0, "expanded": 0, "right": 1, "wrong": -1, "broken": 0}


def test_stages_that_are_off_leave_rewards_and_groups_alone(alone: Topology) -> None:
    run = stages(OFF)
    rewards = [run.rewards(g) for g in GROUPS]
    assert rewards[3] == [0.0] * 4
    assert rewards[4] == [None, None]
    assert [run.flat_sign(g, r) for g, r in zip(GROUPS, rewards, strict=True)] == [0] * 5
    assert not growth_of(run, GROUPS).is_possible
    assert run.flat_advantages is None
    assert all(run.keep(g.prompt) for g in GROUPS)
    seconds = {"rollout": 1.0, "update": 1.0}
    step = run.account(GROUPS, rewards, alone, num_skipped=0, seconds=seconds)
    assert step["residual", "out"] == 3


def cut_off(whole: RolloutGroup, *samples: int) -> RolloutGroup:
    """The group, of which these samples ended at their limit of tokens."""
    rollouts = [
        replace(r, finish_reason="length") if r.sample in samples else r for r in whole.rollouts
    ]
    return replace(whole, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("whole", "samples", "sign"),
    [
        (group("wrong", [0.0] * 3), (), -1),
        (group("wrong", [0.0] * 3), (0, 1), -1),
        (group("wrong", [0.0] * 3), (0, 1, 2), 0),
        (group("wrong", [0.0, None, 0.0]), (0, 2), 0),
        (group("right", [1.0] * 3), (0, 1, 2), 1),
    ],
)
def test_wrong_answers_that_were_all_cut_off_are_not_left_to_the_residual(
    whole: RolloutGroup, samples: tuple[int, ...], sign: int
) -> None:
    run = stages(ZeroVarianceConfig(reshape=ReshapeConfig(enabled=False)))
    flat = cut_off(whole, *samples)
    assert run.flat_sign(flat, run.rewards(flat)) == sign


def test_overlength_is_punished_by_the_limit_of_the_step() -> None:
    """Not by the run's, which a stage of a curriculum with a lower one never comes near."""
    cfg = ZeroVarianceConfig(reshape=ReshapeConfig(w_len=0.2, beta=0.0))
    run = ZeroVarianceStages(cfg, seed=0, group_size=2, completion_limits=(64, 8, 16))
    lengths = [4, 8, 16, 64]
    written = replace(
        group("wrong", [0.0] * 4),
        rollouts=tuple(
            replace(r, num_completion_tokens=n)
            for r, n in zip(group("wrong", [0.0] * 4).rollouts, lengths, strict=True)
        ),
    )
    punished = {limit: run.rewards(written, limit) for limit in (8, 16, 64, None)}
    assert punished[8] == pytest.approx([0, -0.2, -0.2, -0.2])
    assert punished[16] == pytest.approx([0, 0, -0.2, -0.2])
    assert punished[64] == punished[None] == pytest.approx([0, 0, 0, -0.2])


def test_shaping_that_does_not_fit_a_stage_of_the_curriculum_is_refused_at_the_start() -> None:
    cfg = ZeroVarianceConfig(reshape=ReshapeConfig(l_cache=20))
    with pytest.raises(UserError, match="l_cache=20 exceeds l_max=16"):
        ZeroVarianceStages(cfg, seed=0, group_size=2, completion_limits=(64, 16, 64))


def test_the_ladder_asks_for_as_many_again_until_the_largest_size() -> None:
    expand = ExpandConfig(gated=False, max_group_size=6, max_added=2.0)
    growth = growth_of(stages(ZeroVarianceConfig(expand=expand)), GROUPS)
    assert [growth.further(g) for g in GROUPS] == [0, 0, 2, 2, 0]
    assert growth.further(group("right", [1.0] * 6)) == 0
    grown = growth.weighed(group("right", [1.0] * 4))
    assert (grown.weight, grown.count) == (0.5, 0.5)


def test_an_evaluation_before_training_is_each_prompts_first_visit(tmp_path: Path) -> None:
    path = tmp_path / "prompts.samples.jsonl"
    rows = [{"id": "wrong", "sample": i, "verdict": 0.0, "num_tokens": 5} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = ZeroVarianceConfig(prefilter=PrefilterConfig(evaluation=path, flat_visits=1))
    run = stages(cfg)
    assert run.pass_rate("wrong") == 0.0
    assert run.pass_rate("unknown") is None
    assert run.history.keep_probability("wrong") < 1 == run.history.keep_probability("unknown")


def test_a_prompt_once_failed_and_now_solved_moves_on_to_its_own_band(alone: Topology) -> None:
    """Wrong at three visits and right at two: 2 in 5 over its life, but more than 3 in 4 of late.
    One whose verifier always failed is as unknown as one never met."""
    run = stages(ZeroVarianceConfig())
    for verdict in (0.0, 0.0, 0.0, 1.0, 1.0):
        groups = [
            group("learned", [verdict] * 4),
            group("hard", [0.0] * 4),
            group("broken", [None]),
        ]
        rewards = [run.rewards(g) for g in groups]
        seconds = {"rollout": 1.0, "update": 1.0}
        run.account(groups, rewards, alone, num_skipped=0, seconds=seconds)
    names = ("learned", "hard", "broken", "unmet")
    prompts = [Prompt(id=name, messages=()) for name in names]
    chosen = {}
    for low, high in ((0.0, 0.4), (0.7, 0.9)):
        stage = Stage(low=low, high=high, first_step=1, max_completion_tokens=9)
        indices, _ = eligible(prompts, stage, run.pass_rate, at_least=1)
        chosen[low] = [names[i] for i in indices]
    assert chosen == {0.0: ["hard", "broken", "unmet"], 0.7: ["learned", "broken", "unmet"]}


def test_history_and_ledger_survive_a_checkpoint(alone: Topology) -> None:
    run = stages(ZeroVarianceConfig())
    rewards = [run.rewards(g) for g in GROUPS]
    for _ in range(3):
        decisions = [run.keep(g.prompt) for g in GROUPS]
        seconds = {"rollout": 1.0, "update": 1.0}
        run.account(GROUPS, rewards, alone, num_skipped=decisions.count(False), seconds=seconds)
    again = stages(ZeroVarianceConfig())
    again.load_state_dict(json.loads(json.dumps(run.state_dict())))
    assert again.state_dict() == run.state_dict()
    draws = [[r.keep(g.prompt) for g in GROUPS for _ in range(20)] for r in (run, again)]
    assert draws[0] == draws[1]
    assert False in draws[0], "three flat visits: some draws are skipped"
