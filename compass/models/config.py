"""How a policy is held and left behind. Apart from it, so that flags are checked before torchtitan
is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from compass.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How the policy is held and run; its architecture comes from a spec or a checkpoint."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of trainer and generator. Master weights, gradients' reduction and the
    router's logits are float32 in any case."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the block in backward."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The Hugging Face directories that a run leaves behind, beside its checkpoints."""

    interval: int = 0
    """Write one every this many steps, to `run_dir/exports/step_000020`, and keep them all; the
    last goes to `run_dir/model` in any case. 0: only that."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the dtype that `model` came in, by its config.json; for random weights the compute
    dtype. Checkpoints hold the float32 master weights in any case."""

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise UserError(f"export.interval={self.interval} must be 0 (never) or more")

    def resolve(self, came_in: torch.dtype | None, policy: PolicyConfig) -> torch.dtype:
        """What `dtype` stands for with a model that came in `came_in`."""
        if self.dtype == "auto":
            return came_in or DTYPES[policy.dtype]
        return DTYPES[self.dtype]
