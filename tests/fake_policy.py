"""A policy of real shapes and no data, to count what running it would do."""

from __future__ import annotations

from dataclasses import replace

import torch

from compass.models.policy import Policy, build_model, materialize_buffers
from compass.models.specs import SPECS


def fake_policy(num_layers: int, name: str = "30b-a3b") -> Policy:
    """In bfloat16, on the CPU; to be called under `FakeTensorMode`."""
    policy = build_model(replace(SPECS[name], num_layers=num_layers))
    for full_name, parameter in list(policy.named_parameters()):
        module, _, place = full_name.rpartition(".")
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16)
        policy.get_submodule(module)._parameters[place] = torch.nn.Parameter(weight)
    materialize_buffers(policy, "cpu")
    policy.compute_dtype = torch.bfloat16
    return policy
