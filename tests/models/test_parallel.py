"""Sharding: the same weights on every layout, and a generator's view that is the policy itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.models.config import PolicyConfig
from compass.models.context import ForwardContext
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import (
    PolicyView,
    build_policy,
    full_tensor,
    init_policy,
    is_expert,
    local_part,
    local_slice,
    reshard,
)
from compass.models.policy import Policy, build_model, iter_init
from compass.models.specs import ModelSpec
from tests.distributed_run import run_ranks
from tests.tiny_batch import SPEC

WORLD_SIZE = 4
LAYOUTS = {
    "data": {"ep": 1},
    "data and experts": {"ep": 2},
    "replicas": {"ep": 1, "dp_replicate": 2},
    "replicas and experts": {"ep": 2, "dp_replicate": 2},
}
TIED = replace(SPEC, tie_word_embeddings=True)


def make_policy(topology: Topology, spec: ModelSpec = SPEC, dtype: Any = "float32") -> Policy:
    return build_policy(spec, topology, PolicyConfig(dtype=dtype), lambda p: init_policy(p, 0))


def logits(model: torch.nn.Module) -> Tensor:
    rows = torch.arange(12)
    context = ForwardContext(attention=PackedAttention((7, 5), "cpu"), routing=None)
    positions = torch.cat([torch.arange(7), torch.arange(5)])
    with torch.no_grad():
        return model(rows * 5 % SPEC.vocab_size, positions, context, rows)


def places_of_weights(policy: Policy) -> dict[str, bool]:
    """Are shards the rows that `local_slice` says, and together the whole?"""
    initial = dict(iter_init(build_model(SPEC), 0))
    here, whole = [], []
    for name, parameter in policy.named_parameters():
        here.append(torch.equal(local_part(parameter), initial[name][local_slice(parameter)]))
        whole.append(torch.equal(full_tensor(parameter), initial[name]))
    return {"shards are their slices": all(here), "together whole": all(whole)}


def sizes_of_shards(policy: Policy) -> dict[str, int]:
    """Elements on this rank, dense and expert."""
    sizes = {"dense": 0, "experts": 0}
    for name, parameter in policy.named_parameters():
        sizes["experts" if is_expert(name) else "dense"] += local_part(parameter).numel()
    return sizes


def shares_storage(view: PolicyView, policy: Policy) -> bool:
    """Every weight of the view lies where the policy's gathered weight lies."""
    gathered = dict(policy.named_parameters(remove_duplicate=False))
    return all(
        local_part(weight).data_ptr() == local_part(gathered[name]).data_ptr()
        for name, weight in view.model.named_parameters(remove_duplicate=False)
    )


def view_of(topology: Topology, spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Gather, change the shards as an optimizer does while they are gathered, gather again."""
    policy = make_policy(topology, spec, dtype)
    shards = dict(policy.named_parameters())
    view = PolicyView(policy, topology)
    view.refresh(policy)
    seen = {
        "shares storage": shares_storage(view, policy),
        "gathered dtype": str({w.dtype for w in view.model.parameters()}),
    }
    by_view = logits(view.model)
    seen["same logits"] = torch.equal(by_view, logits(policy))
    view.refresh(policy)
    with torch.no_grad():
        for shard in shards.values():
            local_part(shard).mul_(1.5)
    view.refresh(policy)
    seen["shares storage after a step"] = shares_storage(view, policy)
    seen["follows a step"] = all(
        torch.equal(local_part(w), experts_here(full_tensor(shards[name]), w).to(w.dtype))
        for name, w in view.model.named_parameters()
    )
    seen["logits moved"] = not torch.allclose(logits(view.model), by_view, atol=0.1)
    reshard(policy)
    seen["shards again"] = all(p is shards[name] for name, p in policy.named_parameters())
    return seen


def experts_here(full: Tensor, weight: Tensor) -> Tensor:
    """The experts that this rank computes; other weights are whole on every rank."""
    if not isinstance(weight, DTensor):
        return full
    rank, size = weight.device_mesh.get_local_rank(), weight.device_mesh.size()
    return full.chunk(size)[rank]


def world(rank: int) -> dict[str, dict[str, Any]]:
    reports = {}
    for name, degrees in LAYOUTS.items():
        topology = build_topology(rank, WORLD_SIZE, device=torch.device("cpu"), **degrees)
        policy = make_policy(topology)
        reports[name] = {
            "weights": places_of_weights(policy),
            "sizes": sizes_of_shards(policy),
            "logits": logits(policy),
            "view": view_of(topology, SPEC, "float32"),
            "tied bfloat16 view": view_of(topology, TIED, "bfloat16"),
        }
    return reports


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[str, dict[str, Any]]]:
    """What each rank saw on each layout."""
    return run_ranks(world, tmp_path_factory.mktemp("ranks"), WORLD_SIZE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_starts_from_the_same_weights(layout, reports):
    plain = build_model(SPEC, "cpu")
    init_policy(plain, 0)
    for report in reports:
        assert report[layout]["weights"] == {
            "shards are their slices": True,
            "together whole": True,
        }
        torch.testing.assert_close(report[layout]["logits"], logits(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_hold_a_share_of_the_model_and_replicas_hold_it_again(layout, reports):
    replicas = LAYOUTS[layout].get("dp_replicate", 1)
    full = {"dense": 0, "experts": 0}
    for name, weight in iter_init(build_model(SPEC), 0):
        full["experts" if is_expert(name) else "dense"] += weight.numel()
    for kind, size in full.items():
        held = [report[layout]["sizes"][kind] for report in reports]
        assert sum(held) == replicas * size
        assert max(held) < 0.6 * size * replicas


@pytest.mark.parametrize("kind", ["view", "tied bfloat16 view"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_view_is_the_policys_own_weights_and_follows_them(layout, kind, reports):
    for report in reports:
        assert report[layout][kind] == {
            "shares storage": True,
            "gathered dtype": "{torch.bfloat16}" if "bfloat16" in kind else "{torch.float32}",
            "same logits": True,
            "shares storage after a step": True,
            "follows a step": True,
            "logits moved": True,
            "shards again": True,
        }


def test_a_view_of_one_rank_copies_nothing_either(alone):
    seen = view_of(alone, SPEC, "float32")
    assert seen.pop("gathered dtype") == "{torch.float32}"
    assert all(seen.values()), seen


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, num_experts=5), r"ep=2 does not divide the model's 5 experts"),
        (replace(SPEC, num_experts=0, top_k=0), r"ep=2, but the model is dense"),
    ],
)
def test_experts_that_cannot_be_shared_are_the_users_mistake(spec, message, alone):
    with pytest.raises(UserError, match=message):
        make_policy(replace(alone, ep=2), spec)
