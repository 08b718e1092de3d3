"""The batch that the benchmarks against other frameworks share: prompts, imposed lengths, weights.

Each completion has a length of its own, as in RL: drawn from a lognormal (`tail`) or all alike
(`uniform`). Both sides have the same random weights: ours are written as a Hugging Face directory,
which transformers reads.

Shape legend: P prompts, G completions of each, N tokens of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from compass.distributed import Topology
from compass.errors import UserError
from compass.generate.sequence import Request
from compass.models.hf.save import save_hf
from compass.models.policy import Policy
from compass.models.specs import SPECS, ModelSpec
from compass.types import SamplingParams

Lengths = Literal["tail", "uniform"]

PROMPT_TOKENS = 32
MEDIAN_TOKENS, MOST_TOKENS = 40, 256
"""Of the long-tailed lengths, which are lognormal with sigma 1."""
UNIFORM_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts and how long each completion of each will be. Built by `draw_batch`."""

    prompts_PN: Tensor
    lengths_PG: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that a side must write."""
        return int(self.lengths_PG.sum())

    def requests(self, temperature: float) -> list[Request]:
        """One per completion, since each has its own length."""
        return [
            Request(
                prompt_id=f"{i}",
                prompt_token_ids=prompt,
                num_samples=1,
                first_sample=j,
                sampling=SamplingParams(max_completion_tokens=length, temperature=temperature),
            )
            for i, prompt in enumerate(self.prompts_PN.tolist())
            for j, length in enumerate(self.lengths_PG[i].tolist())
        ]


def spec_named(name: str) -> ModelSpec:
    """Raises UserError when there is none of that name."""
    if name not in SPECS:
        raise UserError(f"spec={name!r} is not one of {', '.join(SPECS)}")
    return SPECS[name]


def draw_batch(lengths: Lengths, *, vocab_size: int, num_prompts: int, group_size: int) -> Batch:
    """The same batch for the same arguments."""
    draw = torch.Generator().manual_seed(0)
    prompts_PN = torch.randint(vocab_size, (num_prompts, PROMPT_TOKENS), generator=draw)
    shape = (num_prompts, group_size)
    if lengths == "uniform":
        return Batch(prompts_PN=prompts_PN, lengths_PG=torch.full(shape, UNIFORM_TOKENS))
    tail_PG = torch.randn(shape, generator=draw).exp() * MEDIAN_TOKENS
    return Batch(prompts_PN=prompts_PN, lengths_PG=tail_PG.clamp(1, MOST_TOKENS).int())


def in_transformers(policy: Policy, topology: Topology, folder: Path) -> Any:
    """The policy's weights in transformers' own model, by way of `folder`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    save_hf(policy, folder, topology=topology)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class Seconds(NamedTuple):
    """How long something took."""

    cpu: float
    """Of this process, on all its threads; immune to what else the machine does."""
    wall: float

    @staticmethod
    def now() -> Seconds:
        """Readings of both clocks."""
        return Seconds(time.process_time(), time.perf_counter())

    def since(self, start: Seconds) -> Seconds:
        """From `start` to this."""
        return Seconds(self.cpu - start.cpu, self.wall - start.wall)


def seconds_of(work: Callable[[], object]) -> Seconds:
    """How long `work` takes."""
    started = Seconds.now()
    work()
    return Seconds.now().since(started)


def by_clock(runs: Sequence[Seconds]) -> dict[str, list[float]]:
    """For the JSON: every run on each clock."""
    return {clock: [getattr(run, clock) for run in runs] for clock in Seconds._fields}
