"""Which prompts the next step sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from compass.errors import UserError
from compass.types import Prompt


class PromptSampler:
    """Walks through the prompts in a new shuffled order each epoch.

    The order depends on the seed and the epoch alone, so the state is one integer and every rank
    of any layout sees the same walk. A prompt is met at most once per epoch; those left over at
    the end of an epoch, too few for a step, differ from epoch to epoch.
    """

    def __init__(self, prompts: Sequence[Prompt], *, num_prompts_per_step: int, seed: int) -> None:
        """Raises UserError when the prompts do not fill one step."""
        if not 1 <= num_prompts_per_step <= len(prompts):
            raise UserError(
                f"num_prompts_per_step={num_prompts_per_step}, but there are {len(prompts)} "
                "prompts; choose a number from 1 to that, or give more prompts"
            )
        self._prompts = prompts
        self._per_step = num_prompts_per_step
        self._seed = seed
        self._num_steps = 0

    def next(self) -> list[Prompt]:
        """The prompts of the next step, of all ranks together."""
        epoch, step = divmod(self._num_steps, len(self._prompts) // self._per_step)
        self._num_steps += 1
        start = step * self._per_step
        return [self._prompts[i] for i in self._order(epoch)[start : start + self._per_step]]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here; JSON values."""
        return {"num_steps": self._num_steps, "num_prompts": len(self._prompts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a walk. Raises UserError when the prompts are not as many as then."""
        if state["num_prompts"] != len(self._prompts):
            raise UserError(
                f"the checkpoint walked through {state['num_prompts']} prompts, these are "
                f"{len(self._prompts)}; resume with the same prompt file"
            )
        self._num_steps = state["num_steps"]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return torch.randperm(len(self._prompts), generator=generator).tolist()


def rank_share(prompts: Iterable[Prompt], rank: int, world_size: int) -> list[Prompt]:
    """This rank's prompts: dealt like cards, so that any prefix of the list is shared evenly."""
    return list(prompts)[rank::world_size]
