"""A policy loss of the user's own: tried before anything is spent, then one of the losses.

Shape legend: R loss tokens of a microbatch, B its sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compass.errors import UserError
from compass.means import Means
from compass.own import (
    OwnValue,
    bind_values,
    is_finite_number,
    load_function,
    own_file,
    place_of,
    what_of,
)
from compass.train.loss import Loss, LossInputs, basic_metrics

OwnLoss = Callable[[LossInputs], tuple[Tensor, Mapping[str, float]]]


def open_own_loss(name: str, values: Mapping[str, OwnValue]) -> Loss:
    """The loss that `FILE.py:FUNCTION` names, as the trainer calls it; see `compass.train.loss` for
    what a loss must be. Numbers that it returns are logged as `own/NAME`, means over loss tokens.

    Raises:
        UserError: it does not import, has another signature, or fails a trial on six tokens: an
            exception, no scalar, no finite number, or no gradient.
    """
    function = bind_values(name, load_function(name), values, takes=("inputs",), table="losses.own")
    _try(function, own_file(name), name)

    def loss(x: LossInputs) -> tuple[Tensor, Means]:
        value, numbers = function(x)
        means = basic_metrics(x, value)
        num_tokens = len(x.logprobs_R)
        for key, number in numbers.items() if num_tokens else ():
            means.add(f"own/{key}", number * num_tokens, num_tokens)
        return value, means

    return loss


def _try(function: OwnLoss, path: Path, name: str) -> None:
    """Call it once, as the trainer will."""
    x = trial_inputs()
    try:
        returned = function(x)
    except Exception as error:
        raise UserError(
            f"{place_of(error, path)}: {what_of(error)} (in a trial of loss {name} on six tokens); "
            "mend it"
        ) from None
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(f"loss {name} must return (loss, dict of numbers), not {returned!r}")
    value, numbers = returned
    if not isinstance(value, Tensor) or value.shape != ():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"loss {name} returns {shape}; it must return a scalar tensor")
    if not math.isfinite(value.item()):
        raise UserError(f"loss {name} is {value.item()} on ordinary tokens; mend it")
    if not value.requires_grad:
        raise UserError(f"loss {name} has no gradient; it must depend on inputs.logprobs_R")
    (gradient_R,) = torch.autograd.grad(value, x.logprobs_R, allow_unused=True)
    if gradient_R is None or not gradient_R.any() or not gradient_R.isfinite().all():
        raise UserError(f"loss {name} has the gradient {gradient_R} on ordinary tokens; mend it")
    _check_numbers(numbers, name)


def _check_numbers(numbers: object, name: str) -> None:
    if not isinstance(numbers, Mapping):
        raise UserError(f"loss {name} returns {numbers!r} beside the loss; it must be a dict")
    for key, number in numbers.items():
        if not is_finite_number(number):
            raise UserError(f"loss {name} logs {key}={number!r}; it must be a finite number")


def trial_inputs() -> LossInputs:
    """Two rollouts of three tokens, one good and one bad, a little after the rollout."""
    logprobs_R = torch.tensor([-0.5, -1.0, -0.1, -2.0, -0.7, -0.3], requires_grad=True)
    return LossInputs(
        logprobs_R=logprobs_R,
        old_logprobs_R=logprobs_R.detach() + torch.tensor([0.01, -0.01, 0.0, 0.02, -0.02, 0.0]),
        entropy_R=torch.tensor([0.8, 1.2, 0.3, 1.6, 0.9, 0.6]),
        old_entropy_R=torch.tensor([0.9, 1.2, 0.3, 1.5, 1.0, 0.6]),
        advantages_R=torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]),
        correction_R=torch.ones(6),
        sequence_ids_R=torch.tensor([0, 0, 0, 1, 1, 1]),
        weights_B=torch.ones(2),
        num_sequences=2,
        num_rollouts=2.0,
        num_tokens=6.0,
        vocab_size=32,
    )
