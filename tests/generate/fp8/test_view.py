"""The FP8 view: the bytes of the full matrices on every layout, in buffers that never move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.generate.config import Fp8Config
from compass.generate.fp8.layers import quantised_layers, view_bytes
from compass.generate.fp8.numbers import Fp8Experts, Fp8Linear, dequantise, quantise
from compass.generate.fp8.view import Fp8View, gather_rows, shard_rows
from compass.models.config import PolicyConfig
from compass.models.context import ForwardContext
from compass.models.layers.attention import PackedAttention
from compass.models.layers.router import ReplayRouter
from compass.models.parallel import build_policy, full_tensor, init_policy, is_expert, local_part
from compass.models.policy import Policy, build_model
from compass.models.specs import ModelSpec
from tests.distributed_run import run_ranks
from tests.tiny_batch import SPEC

LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "2 ranks, EP 2": (2, {"ep": 2}),
    "4 ranks, EP 2": (4, {"ep": 2}),
    "4 ranks": (4, {"ep": 1}),
    "4 ranks, replicas, EP 2": (4, {"ep": 2, "dp_replicate": 2}),
}
LINEARS = [
    f"attention.{name}" for name in ("qkv_linear.wq", "qkv_linear.wk", "qkv_linear.wv", "wo")
]
EXPERTS = "moe.routed_experts.inner_experts"


def make_policy(topology: Topology, spec: ModelSpec = SPEC, dtype: Any = "float32") -> Policy:
    return build_policy(spec, topology, PolicyConfig(dtype=dtype), lambda p: init_policy(p, 0))


def logits(model: torch.nn.Module) -> Tensor:
    rows = torch.arange(12)
    context = ForwardContext(attention=PackedAttention((7, 5), "cpu"), routing=None)
    positions = torch.cat([torch.arange(7), torch.arange(5)])
    with torch.no_grad():
        return model(rows * 5 % SPEC.vocab_size, positions, context, rows)


def buffers_by_name(view: Fp8View) -> dict[str, Tensor]:
    """Every buffer, under the name of its parameter."""
    return dict(view.model.named_parameters(remove_duplicate=False)) | {
        name.replace(".matrix.values", ".weight").removesuffix(".values"): buffer
        for name, buffer in view.model.named_buffers()
        if name.endswith("values")
    }


def scale_of(view: Fp8View, name: str) -> Tensor:
    owner = name.replace(".weight", ".matrix") if not is_expert(name) else name
    return view.model.get_submodule(owner).scale


def holds_quantised(view: Fp8View, policy: Policy, topology: Topology) -> dict[str, bool]:
    """Is every buffer what the full parameter, quantised or cast as a whole, has in its place?"""
    same = {"values": True, "scales": True, "kept": True}
    layers = quantised_layers(policy)
    shards = dict(policy.named_parameters())
    for name, buffer in buffers_by_name(view).items():
        full = full_tensor(shards.get(name, shards["tok_embeddings.weight"])).detach()
        if is_expert(name) and topology.ep_mesh is not None:
            full = full.chunk(topology.ep)[topology.ep_mesh.get_local_rank()]
        if name.rpartition(".")[0] in layers:
            values, scale = quantise(full)
            same["values"] &= torch.equal(buffer.view(torch.uint8), values.view(torch.uint8))
            same["scales"] &= torch.equal(scale_of(view, name), scale)
        else:
            same["kept"] &= torch.equal(buffer, full.to(policy.compute_dtype))
    return same


def dense_bytes_from_others(view: Fp8View, topology: Topology) -> int:
    """What a refresh brings of everything but experts: n - 1 shares of the first rank's size."""
    size = topology.dense_mesh.size(-1)
    total = 0
    for name, buffer in view.model.state_dict(keep_vars=True).items():
        if not is_expert(name) and not (view.model.spec.tie_word_embeddings and "lm_head" in name):
            total += buffer[shard_rows(len(buffer), 0, size)].nbytes
    return (size - 1) * total


def report_of(topology: Topology, spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Build, change the shards as an optimizer does, refresh."""
    policy = make_policy(topology, spec, dtype)
    shards = dict(policy.named_parameters())
    view = Fp8View(policy, topology, Fp8Config())
    seen: dict[str, Any] = {"built": holds_quantised(view, policy, topology)}
    places = [buffer.data_ptr() for buffer in view.buffers()]
    before = logits(view.model)
    logits(policy)  # the trainer's forward pass leaves the root unsharded
    with torch.no_grad():
        for i, shard in enumerate(shards.values()):
            local_part(shard).mul_(1.5 + 0.01 * i)
    view.refresh(policy)
    seen["refreshed"] = holds_quantised(view, policy, topology)
    seen["buffers stayed"] = places == [buffer.data_ptr() for buffer in view.buffers()]
    seen["policy stayed sharded"] = all(p is shards[n] for n, p in policy.named_parameters())
    seen["logits moved"] = not torch.allclose(logits(view.model), before, atol=0.1)
    seen["logits"], seen["metrics"] = logits(view.model), view.metrics
    seen["gathered"] = view.num_gathered_bytes
    seen["bytes"] = sum(buffer.nbytes for buffer in view.buffers())
    seen["of dense layers"] = dense_bytes_from_others(view, topology)
    return seen


def gathered_in_pieces(topology: Topology) -> bool:
    """Does a staging buffer too small for any two tensors give the same?"""
    group = topology.dense_mesh.get_group("dp_shard")
    full = [torch.arange(n * 3.0).view(n, 3) + n for n in (5, 1, 8, 2)]
    buffers = [torch.full_like(x, -1.0) for x in full]
    for buffer, x in zip(buffers, full, strict=True):
        rows = shard_rows(len(x), group.rank(), group.size())
        buffer[rows] = x[rows]
    gather_rows(buffers, group, bucket_bytes=1)
    return all(torch.equal(buffer, x) for buffer, x in zip(buffers, full, strict=True))


def world(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    reports = {}
    for name, (size, degrees) in LAYOUTS.items():
        if size == world_size:
            topology = build_topology(rank, size, device=torch.device("cpu"), **degrees)
            tied = replace(SPEC, tie_word_embeddings=True)
            reports[name] = {
                "float32": report_of(topology, SPEC, "float32"),
                "tied bfloat16": report_of(topology, tied, "bfloat16"),
                "in pieces": gathered_in_pieces(topology),
            }
    return reports


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """What each rank saw on each layout."""
    by_rank = {
        size: run_ranks(world, tmp_path_factory.mktemp("ranks"), size, size) for size in (2, 4)
    }
    return {name: [report[name] for report in by_rank[size]] for name, (size, _) in LAYOUTS.items()}


@pytest.mark.parametrize("kind", ["float32", "tied bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_refresh_gives_the_bytes_of_the_full_matrices_in_place(layout, kind, reports) -> None:
    for rank in reports[layout]:
        report = rank[kind]
        for moment in ("built", "refreshed"):
            assert report[moment] == {"values": True, "scales": True, "kept": True}
        assert report["buffers stayed"]
        assert report["policy stayed sharded"]
        assert report["logits moved"]
        assert rank["in pieces"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree_with_one_rank(layout, reports, alone) -> None:
    expected = report_of(alone, SPEC, "float32")
    assert expected["gathered"] == 0
    for rank in reports[layout]:
        report = rank["float32"]
        # Other sizes of matrix products can turn the rounding of an activation.
        torch.testing.assert_close(report["logits"], expected["logits"], rtol=0, atol=0.05)
        assert report["metrics"] == pytest.approx(expected["metrics"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_view_weighs_what_was_planned_for(layout, reports) -> None:
    ep = LAYOUTS[layout][1]["ep"]
    tied = replace(SPEC, tie_word_embeddings=True)
    for rank in reports[layout]:
        planned = view_bytes(SPEC, ep=ep, dtype=torch.float32)
        assert rank["float32"]["bytes"] == sum(planned.values())
        planned = view_bytes(tied, ep=ep, dtype=torch.bfloat16)
        assert rank["tied bfloat16"]["bytes"] == sum(planned.values())


@pytest.mark.parametrize("kind", ["float32", "tied bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_travel_only_between_ranks_that_share_them(layout, kind, reports) -> None:
    world_size, degrees = LAYOUTS[layout]
    own_alone = degrees["ep"] * degrees.get("dp_replicate", 1) == world_size
    for rank in reports[layout]:
        report = rank[kind]
        if own_alone:
            assert report["gathered"] == report["of dense layers"]
        else:
            assert report["gathered"] > report["of dense layers"]


# ---- one rank


def test_the_list_of_quantised_layers_is_this() -> None:
    dense = [*LINEARS, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    sparse = [*LINEARS, EXPERTS]
    expected = {
        f"layers.{layer}.{name}"
        for layer in range(SPEC.num_layers)
        for name in (dense if layer in SPEC.dense_layers else sparse)
    }
    layers = quantised_layers(build_model(SPEC))
    assert layers.keys() == expected
    assert layers[f"layers.0.{EXPERTS}"] == [
        f"layers.0.{EXPERTS}.{name}" for name in ("w1_EFD", "w2_EDF", "w3_EFD")
    ]


def test_no_parameter_slips_in_or_out_of_the_list() -> None:
    model = build_model(SPEC)
    model.blocks[0].attention.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match=r"attention\.bias: neither or doubly listed"):
        quantised_layers(model)
    model = build_model(SPEC)
    model.blocks[0].attention.wo = torch.nn.Identity()
    with pytest.raises(AssertionError, match="16 layers to quantise, expected 17"):
        quantised_layers(model)


def test_the_router_is_the_same_code_over_the_same_gate(alone) -> None:
    policy = make_policy(alone)
    view = Fp8View(policy, alone, Fp8Config())
    for block, own in zip(policy.blocks, view.model.blocks, strict=True):
        assert isinstance(own.attention.wo, Fp8Linear)
        if block.moe is None or own.moe is None:
            continue
        assert isinstance(own.moe.routed_experts.inner_experts, Fp8Experts)
        assert type(own.moe.router) is type(block.moe.router) is ReplayRouter
        gate = block.moe.router.gate.weight
        assert torch.equal(own.moe.router.gate.weight, full_tensor(gate))


def test_errors_are_relative_frobenius_norms_and_shares_of_lost_elements(alone) -> None:
    policy = make_policy(alone)
    weight = local_part(policy.get_parameter("layers.0.attention.wo.weight").detach())
    with torch.no_grad():
        weight[0, 1:5] = weight[0].abs().max() * 1e-6
    view = Fp8View(policy, alone, Fp8Config())
    back = dequantise(*quantise(weight))
    name = "layers.0.attention.wo"
    expected = ((weight - back).norm() / weight.norm()).item()
    assert view.errors.rel_err[name] == pytest.approx(expected, rel=1e-5)
    lost = ((back == 0) & (weight != 0)).float().mean().item()
    assert view.errors.clip_frac[name] == pytest.approx(lost)
    assert lost >= 4 / weight.numel()
    assert view.metrics == {
        "fp8/layers": 17.0,
        "fp8/rel_err_max": max(view.errors.rel_err.values()),
        "fp8/clip_frac": max(view.errors.clip_frac.values()),
    }
    assert 0.02 < view.metrics["fp8/rel_err_max"] < 0.03


def test_a_view_that_may_round_nothing_is_the_policy(alone, capsys) -> None:
    policy = make_policy(alone)
    view = Fp8View(policy, alone, Fp8Config(max_rel_error=1e-9))
    assert view.metrics["fp8/layers"] == 0
    assert "over the error limit, kept in float32: 17 (layers.0." in capsys.readouterr().out
    assert torch.equal(logits(view.model), logits(policy))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_layers_over_the_limit_or_not_finite_are_kept_and_named(broken, alone, capsys) -> None:
    policy = make_policy(alone)
    with torch.no_grad():
        experts = policy.get_parameter(f"layers.2.{EXPERTS}.w2_EDF")
        local_part(experts)[1, 2, 3] = broken
    view = Fp8View(policy, alone, Fp8Config())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("generator weights: 16 layers in E4M3, a scale per row (attention")
    assert printed[1] == f"over the error limit, kept in float32: 1 (layers.2.{EXPERTS})"
    assert view.kept == [f"layers.2.{EXPERTS}"]
    held = view.model.get_parameter(f"layers.2.{EXPERTS}.w2_EDF")
    assert torch.equal(held.isfinite(), full_tensor(experts).isfinite())


def test_a_limit_that_keeps_everything_by_mistake_is_refused() -> None:
    with pytest.raises(UserError, match=r"generator\.fp8\.max_rel_error=0\.0 must be above 0"):
        Fp8Config(max_rel_error=0.0)


def test_shards_are_dtensors_whose_rows_a_view_never_gathers(alone) -> None:
    """The point of the view: after a refresh the policy still holds shards only."""
    policy = make_policy(alone)
    Fp8View(policy, alone, Fp8Config())
    assert all(isinstance(p, DTensor) for p in policy.parameters())
