"""Stage 4: token advantages from entropy for groups that are still flat (arXiv 2509.21880).

Shape legend: R loss tokens of a microbatch, B its sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compass.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """RL-ZVP (arXiv 2509.21880)."""

    enabled: bool = True
    """Train groups that are still flat; otherwise their advantage is zero."""
    scale: float = 0.1
    """a of eq. 5: advantage per nat of entropy."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError(
                f"residual.scale={self.scale} must be above 0; to switch the stage off, set "
                "residual.enabled=false"
            )


def residual_advantages(
    entropy_R: Tensor, sequence_ids_R: Tensor, sign_B: Tensor, *, scale: float
) -> Tensor:
    """Advantages of the tokens of flat groups (arXiv 2509.21880, eq. 5).

    A_t = scale * H_t in a group that is all right: uncertain tokens are reinforced more;
    A_t = -scale * (max_k H_k - H_t) in one that is all wrong, the maximum over the response: they
    are punished less, so that exploration survives.

    Args:
        entropy_R: H_t in nats over the full vocabulary; no gradient flows through it.
        sequence_ids_R: int64 in [0, B).
        sign_B: +1 all right, -1 all wrong by the unshaped verdicts (`outcome.tie_sign`); 0 for a
            sequence whose group is not left to this stage: its tokens get 0.

    Returns:
        advantages_R, of the entropies' type.
    """
    entropy_R = entropy_R.detach()
    sign_R = sign_B[sequence_ids_R].to(entropy_R.dtype)
    highest_B = torch.zeros(len(sign_B), dtype=entropy_R.dtype, device=entropy_R.device)
    highest_B = highest_B.scatter_reduce(0, sequence_ids_R, entropy_R, "amax", include_self=False)
    right_R = scale * entropy_R
    wrong_R = -scale * (highest_B[sequence_ids_R] - entropy_R)
    # `where`, not a product with the sign: 0 * inf would be nan.
    advantages_R = torch.where(sign_R > 0, right_R, wrong_R)
    return torch.where(sign_R == 0, torch.zeros_like(entropy_R), advantages_R)
