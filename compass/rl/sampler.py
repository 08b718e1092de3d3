"""Which prompts the next step sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compass.errors import UserError
from compass.rl.curriculum import PassRate, Stage, eligible, stage_at
from compass.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What a sampler needs to follow a curriculum."""

    stages: Sequence[Stage]
    """From `compass.rl.curriculum.stages_of`."""
    pass_rate: PassRate
    """Read when a stage begins; the same on every rank."""
    log: Callable[[str], None]
    """Gets a line for each stage that begins, when there are several."""


class PromptSampler:
    """Walks through the prompts in a new shuffled order each epoch.

    The order depends on the seed and the epoch alone, so every rank of any layout sees the same
    walk. A prompt is met at most once per epoch; those left over at the end of an epoch, too few
    for a step, differ from epoch to epoch.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        num_prompts_per_step: int,
        seed: int,
        keep: Callable[[Prompt], bool] | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        """
        Args:
            keep: asked once for each prompt that is met; False skips it. It must answer alike on
                every rank, and bring its own state through a checkpoint.
            curriculum: which prompts are met at which step; None: all, always.

        Raises:
            UserError: the prompts do not fill one step.
        """
        if not 1 <= num_prompts_per_step <= len(prompts):
            raise UserError(
                f"num_prompts_per_step={num_prompts_per_step}, but there are {len(prompts)} "
                "prompts; choose a number from 1 to that, or give more prompts"
            )
        self._prompts = prompts
        self._per_step = num_prompts_per_step
        self._seed = seed
        self._keep = keep
        self._curriculum = curriculum
        self._num_steps = 0
        self._stage: int | None = None
        self._eligible: Sequence[int] = range(len(prompts))
        self._epoch = 0
        self._position = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])
        self.last_skipped: list[Prompt] = []
        """What `keep` refused in the last step and the step did without."""

    def next(self) -> list[Prompt]:
        """The prompts of the next step, of all ranks together; no prompt twice.

        Prompts that `keep` refuses are passed over. The search ends when every eligible prompt
        has been met once; if it found too few, the first ones it refused fill the step.
        """
        self._num_steps += 1
        self._enter_stage()
        if len(self._eligible) - self._position < self._per_step:
            self._begin_epoch()
        chosen: list[Prompt] = []
        refused: list[Prompt] = []
        met: set[int] = set()
        while len(chosen) < self._per_step and len(met) < len(self._eligible):
            index = self._advance()
            if index not in met:
                met.add(index)
                prompt = self._prompts[index]
                kept = self._keep is None or self._keep(prompt)
                (chosen if kept else refused).append(prompt)
        missing = self._per_step - len(chosen)
        self.last_skipped = refused[missing:]
        return chosen + refused[:missing]

    @property
    def stage(self) -> Stage | None:
        """The stage of the last step; None without a curriculum, and before the first step."""
        if self._curriculum is None or self._stage is None:
            return None
        return self._curriculum.stages[self._stage]

    @property
    def max_completion_tokens(self) -> int | None:
        """The last step's limit by the curriculum; None where it sets none."""
        return None if self.stage is None else self.stage.max_completion_tokens

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here; JSON values."""
        everything = len(self._eligible) == len(self._prompts)
        return {
            "num_prompts": len(self._prompts),
            "num_steps": self._num_steps,
            "epoch": self._epoch,
            "position": self._position,
            "stage": self._stage,
            "eligible": None if everything else list(self._eligible),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a walk. Raises UserError when the prompts are not as many as then."""
        if state["num_prompts"] != len(self._prompts):
            raise UserError(
                f"the checkpoint walked through {state['num_prompts']} prompts, these are "
                f"{len(self._prompts)}; resume with the same prompt file"
            )
        self._num_steps = state["num_steps"]
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._stage = state["stage"]
        self._eligible = range(len(self._prompts))
        if state["eligible"] is not None:
            self._eligible = state["eligible"]
        self._shuffled = (-1, [])

    def _enter_stage(self) -> None:
        """Choose the eligible prompts anew where a stage begins."""
        if self._curriculum is None:
            return
        stages = self._curriculum.stages
        index = stage_at(stages, self._num_steps)
        if index == self._stage:
            return
        self._eligible, widened = eligible(
            self._prompts, stages[index], self._curriculum.pass_rate, at_least=self._per_step
        )
        if self._stage is not None:
            self._begin_epoch()
        self._stage = index
        if len(stages) > 1:
            self._curriculum.log(self._stage_line(stages, index, widened))

    def _stage_line(self, stages: Sequence[Stage], index: int, widened: float) -> str:
        note = f"; the band was too narrow and grew by {widened:.3g} at each end" if widened else ""
        return (
            f"curriculum: stage {index + 1} of {len(stages)} from step {self._num_steps}, "
            f"pass rates {stages[index].low:g} to {stages[index].high:g}, "
            f"{len(self._eligible)} of {len(self._prompts)} prompts{note}"
        )

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._position = 0

    def _advance(self) -> int:
        """The next prompt's index, epoch after epoch."""
        if self._position == len(self._eligible):
            self._begin_epoch()
        self._position += 1
        return self._eligible[self._order()[self._position - 1]]

    def _order(self) -> list[int]:
        if self._shuffled[0] != self._epoch:
            seed = _fitting_seed(self._seed * 1_000_003 + self._epoch)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self._eligible), generator=generator).tolist()
            self._shuffled = (self._epoch, order)
        return self._shuffled[1]


def _fitting_seed(number: int) -> int:
    """`number` where torch takes it as a seed, which is 64 bits; else a hash of it."""
    if -(2**63) <= number < 2**64:
        return number
    digest = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def rank_share(prompts: Iterable[Prompt], rank: int, world_size: int) -> list[Prompt]:
    """This rank's prompts: dealt like cards, so that any prefix of the list is shared evenly."""
    return list(prompts)[rank::world_size]
