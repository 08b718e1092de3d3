"""The generator's FP8 weights: persistent E4M3 buffers, refreshed in place
(docs/fp8_generator.md).

The same module classes as the policy's, the router's code and gates among them; only the layers of
`quantised_layers` are replaced. Refreshing never gathers a matrix in high precision: each rank
quantises the rows it holds straight into its place in the buffers, and the other rows come as
bytes. Experts travel between the ranks that share an expert-parallel rank's experts (none when
EP = world), everything else over the dense mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from compass.distributed import Topology
from compass.generate.config import Fp8Config
from compass.generate.fp8.layers import ErrorSums, LayerErrors, quantised_layers
from compass.generate.fp8.numbers import (
    Fp8Experts,
    Fp8FeedForward,
    Fp8Linear,
    Fp8Matrix,
    Fp8QKV,
    quantise,
)
from compass.models.parallel import empty_view, is_expert, local_part, reshard
from compass.models.policy import Policy

_BUCKET_BYTES = 1 << 28
"""Rows travel through a staging buffer of about this size on each rank: one collective for a small
model, and no second copy of a large one."""

# torch 2.13 renamed it, and warns of the old name on every rank.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Fp8View:
    """A second model over buffers of its own: E4M3 where `quantised_layers` says, the policy's
    compute dtype elsewhere.

    Buffers are allocated once; `refresh` writes into them, and their addresses stay. The view is
    always valid: the policy may train, and hold shards only, while it generates.
    """

    def __init__(self, policy: Policy, topology: Topology, cfg: Fp8Config) -> None:
        """Collective: it measures the rounding of every layer, and loads the weights."""
        self.topology = topology
        self.model = empty_view(policy, topology)
        layers = quantised_layers(self.model)
        self.errors = _measure(policy, layers, topology)
        self.kept = [name for name, e in self.errors.rel_err.items() if not e <= cfg.max_rel_error]
        """Layers over the limit, or not finite. Fixed now: CUDA graphs hold addresses."""
        self.layers = {name: names for name, names in layers.items() if name not in self.kept}
        self._buffers = self._allocate(policy.compute_dtype, cfg)
        self.num_gathered_bytes = 0
        """Bytes this rank received from others in the last refresh."""
        self.refresh(policy)
        if topology.is_main:
            print(self.summary(), flush=True)

    @property
    def metrics(self) -> dict[str, float]:
        """`fp8/*` of the last refresh."""
        return self.errors.metrics(list(self.layers))

    @torch.no_grad()
    def refresh(self, policy: Policy) -> None:
        """Quantise the policy's current weights into the buffers, in place. Collective."""
        reshard(policy)  # what is gathered may be older than the last optimizer step
        sums = ErrorSums(list(self.layers), self.topology)
        to_gather: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, shard in _shards(policy).items():
            buffers = self._buffers[name]
            group = self._group(is_expert(name))
            rows = shard_rows(len(buffers[0]), group.rank(), group.size())
            assert rows.stop - rows.start == len(shard), f"{name}: {len(shard)} rows are not {rows}"
            sources = [shard]
            if len(buffers) == 2:
                sources = [*quantise(shard)]
                sums.add(name.rpartition(".")[0], shard, *sources)
            for buffer, source in zip(buffers, sources, strict=True):
                buffer[rows].copy_(source)
            to_gather[is_expert(name)] += buffers
        self.num_gathered_bytes = sum(
            gather_rows(buffers, self._group(experts)) for experts, buffers in to_gather.items()
        )
        for module in self.model.modules():
            if isinstance(module, Fp8Matrix):
                module.refresh()
        self.errors = sums.reduce()

    def summary(self) -> str:
        """One line on what is quantised; a second when layers were kept."""
        spec = self.model.spec
        kinds = ["attention wq wk wv wo"]
        kinds += ["feed-forward w1 w2 w3"] * (spec.num_layers > spec.num_moe_layers)
        kinds += ["experts w1 w2 w3"] * (spec.num_moe_layers > 0)
        kept_dtype = str(self.model.tok_embeddings.weight.dtype).removeprefix("torch.")
        line = (
            f"generator weights: {len(self.layers)} layers in E4M3, a scale per row "
            f"({', '.join(kinds)}), largest relative error {self.metrics['fp8/rel_err_max']:.4f}; "
            f"embedding, output projection, norms and router gates in {kept_dtype}"
        )
        if self.kept:
            names = ", ".join(self.kept[:4]) + (", ..." if len(self.kept) > 4 else "")
            line += f"\nover the error limit, kept in {kept_dtype}: {len(self.kept)} ({names})"
        return line

    def buffers(self) -> Iterator[Tensor]:
        """Every persistent buffer that `refresh` writes, a tied embedding once."""
        for buffers in self._buffers.values():
            yield from buffers

    def _group(self, experts: bool) -> ProcessGroup:
        """The ranks among which the rows of a matrix are spread."""
        if experts:
            return self.topology.expert_fsdp_mesh.get_group("efsdp")
        return self.topology.dense_mesh.get_group("dp_shard")

    def _allocate(self, dtype: torch.dtype, cfg: Fp8Config) -> dict[str, list[Tensor]]:
        """Give the model its buffers; returns them by parameter name, values before scales."""
        shapes = {name: self._local_shape(name, p) for name, p in self.model.named_parameters()}
        allocated: dict[str, list[Tensor]] = {}
        for layer, names in self.layers.items():
            matrices = {}
            for name in names:
                matrix = Fp8Matrix(
                    shapes[name],
                    quantise_activations=cfg.quantise_activations,
                    dtype=dtype,
                    device=self.topology.device,
                )
                matrices[name.rpartition(".")[2]] = matrix
                allocated[name] = [matrix.values, matrix.scale]
            expert = is_expert(names[0])
            module = Fp8Experts(**matrices) if expert else Fp8Linear(matrices["weight"])
            parent, _, place = layer.rpartition(".")
            setattr(self.model.get_submodule(parent), place, module)
        share_inputs(self.model)
        for name, meta in list(self.model.named_parameters()):
            buffer = torch.empty(shapes[name], dtype=dtype, device=self.topology.device)
            _replace_parameter(self.model, meta, nn.Parameter(buffer, requires_grad=False))
            allocated[name] = [buffer]
        return allocated

    def _local_shape(self, name: str, parameter: Tensor) -> tuple[int, ...]:
        """Experts are this rank's alone, everything else is whole."""
        ep = self.topology.ep if is_expert(name) else 1
        return (len(parameter) // ep, *parameter.shape[1:])


def share_inputs(model: Policy) -> None:
    """Layers with one input round it once."""
    for block in model.blocks:
        qkv = block.attention.qkv_linear
        shared = Fp8QKV(qkv.wq, qkv.wk, qkv.wv, model.spec.head_dim)
        block.attention.qkv_linear = shared
        if (dense := block.feed_forward) is not None:
            block.feed_forward = Fp8FeedForward(dense.w1, dense.w2, dense.w3)


def _replace_parameter(model: nn.Module, old: Tensor, new: nn.Parameter) -> None:
    """Under every name it has: a tied embedding has two."""
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter is old:
            module, _, place = name.rpartition(".")
            model.get_submodule(module)._parameters[place] = new


def shard_rows(num_rows: int, rank: int, size: int) -> slice:
    """The rows of rank `rank` of `size`, cut like `torch.chunk` and FSDP2."""
    chunk = -(-num_rows // size)
    return slice(min(num_rows, rank * chunk), min(num_rows, (rank + 1) * chunk))


def gather_rows(
    buffers: Sequence[Tensor], group: ProcessGroup, bucket_bytes: int = _BUCKET_BYTES
) -> int:
    """Every rank has written its `shard_rows` of each buffer; fetch the others', in place.

    Collective over `group`. Returns the bytes received, padding included.
    """
    received = 0
    if group.size() == 1:
        return received
    for bucket in _buckets(buffers, bucket_bytes):
        shares = [
            [_bytes(b[shard_rows(len(b), rank, group.size())]) for b in bucket]
            for rank in range(group.size())
        ]
        width = sum(len(piece) for piece in shares[0])  # the first rank never has fewer rows
        staged = torch.empty((group.size(), width), dtype=torch.uint8, device=bucket[0].device)
        mine = torch.zeros_like(staged[0])
        own = torch.cat(shares[group.rank()])
        mine[: len(own)] = own
        _all_gather(staged.flatten(), mine, group=group)
        for rank, pieces in enumerate(shares):
            if rank == group.rank():
                continue
            sizes = [len(piece) for piece in pieces]
            for piece, source in zip(pieces, staged[rank, : sum(sizes)].split(sizes), strict=True):
                piece.copy_(source)
        received += (group.size() - 1) * width
    return received


def _buckets(buffers: Sequence[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for buffer in buffers:
        if bucket and size + buffer.nbytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(buffer)
        size += buffer.nbytes
    if bucket:
        yield bucket


def _bytes(rows: Tensor) -> Tensor:
    return rows.flatten().view(torch.uint8)


def _shards(policy: Policy) -> dict[str, Tensor]:
    """This rank's rows of every parameter, in the master weights' dtype."""
    return {name: local_part(p.detach()) for name, p in policy.named_parameters()}


@torch.no_grad()
def _measure(policy: Policy, layers: Mapping[str, list[str]], topology: Topology) -> LayerErrors:
    reshard(policy)
    shards = _shards(policy)
    sums = ErrorSums(list(layers), topology)
    for layer, names in layers.items():
        for name in names:
            sums.add(layer, shards[name], *quantise(shards[name]))
    return sums.reduce()
