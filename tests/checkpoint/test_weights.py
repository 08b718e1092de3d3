"""Weights of a checkpoint come as they were saved, one at a time, or not at all."""

import pytest
import torch
from torch import nn

from compass.checkpoint.tensors import write_tensors
from compass.checkpoint.weights import SavedWeights
from compass.errors import UserError

SHAPES = {"weight": (5, 3), "bias": (5,)}


@pytest.fixture
def model(alone, tmp_path) -> nn.Module:
    model = nn.Linear(3, 5)
    write_tensors(tmp_path, model, torch.optim.SGD(model.parameters()))
    return model


def test_a_parameter_comes_in_the_dtype_asked_for(model, tmp_path):
    weights = SavedWeights(tmp_path, SHAPES)
    for name, tensor in model.named_parameters():
        assert torch.equal(weights.read(name, torch.bfloat16), tensor.bfloat16())


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"weight": (3, 5)}, r"weight has shape \(5, 3\), and its config.json asks for \(3, 5\)"),
        ({**SHAPES, "gate": (5,)}, r"gate is missing, and its config.json asks for \(5,\)"),
    ],
)
def test_what_is_not_the_model_of_the_config_is_refused(model, tmp_path, shapes, complaint):
    with pytest.raises(UserError, match=complaint):
        SavedWeights(tmp_path, shapes)
