"""How a policy is held. Apart from it, so that flags are checked before torchtitan is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How the policy is held and run; its architecture comes from a spec or a checkpoint."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of trainer and generator. Master weights, gradients' reduction and the
    router's logits are float32 in any case."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the block in backward."""
    export_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model that a run leaves behind: `auto` is the compute dtype, which is all that either
    side ever sees of the master weights, at half of float32's size for bfloat16. Checkpoints to
    resume from hold the master weights in any case."""

    @property
    def exported(self) -> torch.dtype:
        """What `export_dtype` stands for."""
        return DTYPES[self.dtype if self.export_dtype == "auto" else self.export_dtype]
