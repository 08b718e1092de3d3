"""Sharding a policy: experts over `ep`, everything over FSDP2.

Gradients are *summed* over ranks (divide factor 1): losses are local sums over global counts, so
one rank, two ranks and accumulated microbatches give the same gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from compass.distributed import Topology
from compass.errors import UserError
from compass.models.config import DTYPES, PolicyConfig
from compass.models.policy import Policy, build_model, iter_init, materialize_buffers
from compass.models.specs import ModelSpec
from compass.models.titan import RoutedExperts


def build_policy(
    spec: ModelSpec,
    topology: Topology,
    cfg: PolicyConfig,
    fill: Callable[[Policy], None],
) -> Policy:
    """A sharded policy on this rank's device.

    Args:
        fill: writes the weights, e.g. `init_policy` or a loader of `compass.models.hf.weights`; it
            sees the sharded policy, with uninitialised parameters.

    Raises:
        UserError: `ep` does not divide the experts, or a dense model is asked for `ep` > 1.
    """
    _check_ep(spec, topology.ep)
    policy = build_model(spec)
    for block in policy.blocks:
        block.recompute = cfg.activation_checkpointing
    shard_policy(policy, topology, DTYPES[cfg.dtype])
    policy.to_empty(device=topology.device)
    materialize_buffers(policy, topology.device)
    fill(policy)
    return policy


def init_policy(policy: Policy, seed: int) -> None:
    """Fill a (sharded) policy with the random initialisation of `iter_init`."""
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, full in iter_init(policy, seed):
            local_part(parameters[name]).copy_(full[local_slice(parameters[name])])


def shard_policy(policy: Policy, topology: Topology, dtype: torch.dtype) -> None:
    """Distribute experts over `ep`, then wrap experts, blocks and the root with FSDP2."""
    policy.compute_dtype = dtype
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    wrapped: list[FSDPModule] = []
    for block in policy.blocks:
        if block.moe is not None:
            routed = block.moe.routed_experts
            _shard_experts(routed, topology.ep_mesh)
            wrapped.append(_wrap(routed.inner_experts, topology.expert_fsdp_mesh, precision))
        wrapped.append(_wrap(block, topology.dense_mesh, precision))
    wrapped.append(_wrap(policy, topology.dense_mesh, precision))
    for module in wrapped:
        module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
        module.set_gradient_divide_factor(1.0)


def _wrap(module: nn.Module, mesh: DeviceMesh, precision: MixedPrecisionPolicy) -> FSDPModule:
    wrapped = fully_shard(module, mesh=mesh, mp_policy=precision)
    assert isinstance(wrapped, FSDPModule)
    return wrapped


def _shard_experts(routed: RoutedExperts, ep_mesh: DeviceMesh | None) -> None:
    if ep_mesh is None:
        return
    routed.token_dispatcher.wire_meshes(ep_mesh=ep_mesh)
    experts = routed.inner_experts
    for name, parameter in list(experts.named_parameters(recurse=False)):
        sharded = distribute_tensor(parameter.data, ep_mesh, [Shard(0)])
        experts.register_parameter(name, nn.Parameter(sharded))


def _check_ep(spec: ModelSpec, ep: int) -> None:
    if ep > 1 and spec.num_experts == 0:
        raise UserError(f"parallel.ep={ep}, but the model is dense; use parallel.ep=1")
    if spec.num_experts % ep:
        raise UserError(
            f"parallel.ep={ep} does not divide the model's {spec.num_experts} experts; "
            "choose a divisor"
        )


def is_expert(name: str) -> bool:
    """True for parameters that live on the expert meshes."""
    return ".inner_experts." in name


def local_part(parameter: Tensor) -> Tensor:
    """This rank's shard of a parameter, as a plain tensor that shares its storage."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def local_slice(parameter: Tensor) -> slice:
    """Which rows (dim 0) of the full parameter this rank's shard holds.

    Experts are cut by `ep` first and by FSDP within that part; everything else by FSDP alone, each
    cut like `torch.chunk`.
    """
    start, size = 0, parameter.shape[0]
    if not isinstance(parameter, DTensor):
        return slice(start, start + size)
    mesh = parameter.device_mesh
    names = mesh.mesh_dim_names or ()
    for axis in ("ep", "efsdp", "dp_shard"):
        if axis not in names:
            continue
        dim = names.index(axis)
        chunk = -(-size // mesh.size(dim))
        begin = min(size, chunk * mesh.get_local_rank(dim))
        size = min(chunk, size - begin)
        start += begin
    return slice(start, start + size)


# Experts are cut over two mesh axes, and DTensor warns that undoing it takes two all-gathers. It
# does, once per export or checkpoint.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def full_tensor(parameter: Tensor) -> Tensor:
    """The whole parameter on every rank. Collective."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def reshard(policy: Policy) -> None:
    """Give up gathered weights: every parameter is this rank's shard again."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def empty_view(policy: Policy, topology: Topology) -> Policy:
    """A second model of the policy's modules, ready to generate but for its parameters, which are
    on the meta device."""
    model = build_model(policy.spec)
    materialize_buffers(model, topology.device)
    for block in model.blocks:
        if block.moe is not None and topology.ep_mesh is not None:
            block.moe.routed_experts.token_dispatcher.wire_meshes(ep_mesh=topology.ep_mesh)
    return model.eval().requires_grad_(False)


class PolicyView:
    """The generator's side of the policy: the same module classes, without FSDP hooks, whose
    parameters *are* the policy's unsharded parameters (no copies).

    A view is valid from `refresh` until the trainer next reshards, that is until its first
    forward pass.
    """

    def __init__(self, policy: Policy, topology: Topology) -> None:
        self.model = empty_view(policy, topology)

    def refresh(self, policy: Policy) -> None:
        """Gather the policy's current weights and point the view at them. Collective."""
        reshard(policy)  # what is gathered may be older than the last optimizer step
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
        _bind(self.model, dict(policy.named_parameters(remove_duplicate=False)))


def _bind(model: Policy, parameters: Mapping[str, Tensor]) -> None:
    for full_name, _ in list(model.named_parameters(remove_duplicate=False)):
        module_name, _, name = full_name.rpartition(".")
        model.get_submodule(module_name)._parameters[name] = parameters[full_name]  # type: ignore[assignment]
