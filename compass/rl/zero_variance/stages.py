"""The four stages at work in a run: they share one history and one account.

Stage 1 filters what the sampler draws, 2 grows groups inside the rollout, 3 reshapes rewards, 4
leaves what is still flat to RL-ZVP. `account` closes a step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from compass.distributed import Topology, raised_together
from compass.jsonl import write_jsonl
from compass.manifest import write_whole
from compass.rl.advantage import Rewards, is_flat, unshaped_rewards
from compass.rl.zero_variance.expand import ExpandConfig
from compass.rl.zero_variance.growth import Growth, plan_growth
from compass.rl.zero_variance.history import PrefilterConfig, PromptHistory, evaluation_outcomes
from compass.rl.zero_variance.ledger import Ledger
from compass.rl.zero_variance.outcome import GroupOutcome, SavedBy, differ, tie_sign
from compass.rl.zero_variance.reshape import ReshapeConfig
from compass.rl.zero_variance.residual import ResidualConfig, residual_advantages
from compass.train.loss import FlatAdvantages
from compass.types import Prompt, Rollout, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class ZeroVarianceConfig:
    """Multi-stage zero-variance elimination (arXiv 2512.07710, section 2.4.1)."""

    prefilter: PrefilterConfig = field(default_factory=PrefilterConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    reshape: ReshapeConfig = field(default_factory=ReshapeConfig)
    residual: ResidualConfig = field(default_factory=ResidualConfig)


class ZeroVarianceStages:
    """What the recipe asks at each line of a step. The history is the same on every rank."""

    def __init__(
        self,
        cfg: ZeroVarianceConfig,
        *,
        seed: int,
        group_size: int,
        completion_limits: Sequence[int],
    ) -> None:
        """
        Args:
            completion_limits: longest completions, of the run first, then of a curriculum's
                stages.

        Raises:
            UserError: reshaping's lengths do not fit a limit, groups cannot grow as they should,
                or the evaluation is malformed.
        """
        cfg.expand.check(group_size)
        self.history = PromptHistory(cfg.prefilter, seed=seed)
        if cfg.prefilter.evaluation is not None:
            for outcome in evaluation_outcomes(cfg.prefilter.evaluation):
                self.history.record(outcome)
        self.ledger = Ledger()
        """Of the whole run."""
        self._cfg = cfg
        self._group_size = group_size
        self._limit = completion_limits[0]
        self._reshape = {limit: cfg.reshape.bind(limit) for limit in completion_limits}

    def keep(self, prompt: Prompt) -> bool:
        """Stage 1: whether a prompt that was drawn is rolled out."""
        return self.history.admit(prompt.id)

    def pass_rate(self, prompt_id: str) -> float | None:
        """Share of right rollouts of late; None without a verdict: what a curriculum goes by."""
        return self.history[prompt_id].recent_pass_rate

    @property
    def num_generated_tokens(self) -> int:
        """Tokens written by the whole run so far, on all ranks."""
        return int(self.ledger["base", "tokens"] + self.ledger["expand", "tokens"])

    def has_spent(self, budget: int | None) -> bool:
        """Whether the run has used up a budget of generated tokens; None is none."""
        return budget is not None and self.num_generated_tokens >= budget

    def growth(
        self, prompts: Sequence[Prompt], *, expected_tokens: Callable[[Prompt], float]
    ) -> Growth:
        """Stage 2: what the groups of these prompts may grow to, from history alone.

        Args:
            prompts: of one rollout, on all ranks together.
            expected_tokens: of one completion of a prompt.
        """
        return plan_growth(
            self.history,
            prompts,
            self._cfg.expand,
            group_size=self._group_size,
            expected_tokens=expected_tokens,
        )

    def rewards(self, group: RolloutGroup, max_completion_tokens: int | None = None) -> Rewards:
        """Stage 3: shaped rewards, or the rewards as they are when it is off.

        Args:
            max_completion_tokens: what the group was written with; None is the run's own limit.
        """
        rewards = unshaped_rewards(group)
        if not self._cfg.reshape.enabled:
            return rewards
        return self._reshape[max_completion_tokens or self._limit](
            rewards,
            [r.num_completion_tokens for r in group.rollouts],
            [r.repetition for r in group.rollouts],
            all_right=all(verdict >= 1 for verdict in group.valid_verdicts),
        )

    def flat_sign(self, group: RolloutGroup, rewards: Rewards) -> int:
        """Stage 4: +1 or -1, by verdicts that agree, for a group whose rewards are flat too.

        0 where every wrong answer was cut off at its limit: none was finished, and nothing says
        which of its tokens were wrong. Our choice.
        """
        if not self._cfg.residual.enabled or not is_flat(rewards):
            return 0
        sign = tie_sign(group.valid_verdicts)
        return 0 if sign < 0 and _all_cut_off(group) else sign

    @property
    def flat_advantages(self) -> FlatAdvantages | None:
        """Stage 4: RL-ZVP's advantages for groups with a sign; None when it is off."""
        residual = self._cfg.residual
        return partial(residual_advantages, scale=residual.scale) if residual.enabled else None

    def account(
        self,
        groups: Sequence[RolloutGroup],
        rewards: Sequence[Rewards],
        topology: Topology,
        *,
        num_skipped: int,
        seconds: Mapping[str, float],
    ) -> Ledger:
        """Close a step: record this rank's groups and those of the others in the history, and
        return the step's ledger over all ranks. Collective.

        Args:
            num_skipped: prompts that the pre-filter skipped, on all ranks together.
            seconds: of `rollout`, shared between `base` and `expand` by their tokens, and of
                `update`, of which `residual` gets the share of the flat groups trained.
        """
        pairs = zip(groups, rewards, strict=True)
        mine = [self.outcome(group, of_group) for group, of_group in pairs]
        by_rank = topology.all_gather_object(mine)
        self.history.merge(by_rank)
        step = Ledger()
        step.skip(num_skipped)
        for outcomes in by_rank:
            for outcome in outcomes:
                step.record(outcome)
        tokens = step["base", "tokens"] + step["expand", "tokens"]
        for stage in ("base", "expand"):
            step.spend(stage, seconds["rollout"] * step[stage, "tokens"] / max(1.0, tokens))
        trained = sum(o.saved_by != "none" for outcomes in by_rank for o in outcomes)
        step.spend("residual", seconds["update"] * step["residual", "saved"] / max(1, trained))
        self.ledger.add(step)
        return step

    def outcome(self, group: RolloutGroup, rewards: Rewards) -> GroupOutcome:
        """What became of a group whose rewards were shaped so."""
        base = [r for r in group.rollouts if r.sample < self._group_size]
        added = group.rollouts[len(base) :]
        return GroupOutcome(
            prompt_id=group.prompt.id,
            verdicts=tuple(group.valid_verdicts),
            is_flat=group.is_flat,
            base_rollouts=len(base),
            base_tokens=_tokens(base),
            expand_rollouts=len(added),
            expand_tokens=_tokens(added),
            saved_by=self._saved_by(group, base, rewards),
        )

    def write(self, run_dir: Path, topology: Topology) -> None:
        """Print the run's account; write it to `ledger.json` and each prompt's story to
        `history.jsonl`. Collective; one rank writes.

        Raises:
            UserError: the folder cannot be written.
        """
        with raised_together(topology):
            if topology.is_main:
                Console(soft_wrap=True).print(self.ledger.table())
                write_jsonl(run_dir / "history.jsonl", self.history.rows())
                summary = {
                    "zv": self.ledger.state_dict(),
                    "rollouts_per_useful_group": self.ledger.rollouts_per_useful_group,
                    "generated_tokens": self.num_generated_tokens,
                }
                write_whole(run_dir / "ledger.json", json.dumps(summary, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """History and ledger; JSON values."""
        return {"history": self.history.state_dict(), "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.history.load_state_dict(state["history"])
        self.ledger.load_state_dict(state["ledger"])

    def _saved_by(self, group: RolloutGroup, base: Sequence[Rollout], rewards: Rewards) -> SavedBy:
        if differ([r.score.reward for r in base if r.score.valid]):
            return "base"
        if not group.is_flat:
            return "expand"
        if not is_flat(rewards):
            return "reshape"
        return "residual" if self.flat_sign(group, rewards) else "none"


def _all_cut_off(group: RolloutGroup) -> bool:
    return all(r.finish_reason == "length" for r in group.rollouts if r.score.valid)


def _tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(r.num_completion_tokens for r in rollouts)
