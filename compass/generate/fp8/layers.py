"""Which layers the FP8 generator quantises, what rounding does to them, and what they weigh."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compass.distributed import Topology
from compass.generate.fp8.numbers import E4M3, dequantise
from compass.models.parallel import is_expert
from compass.models.policy import Policy, build_model
from compass.models.specs import ModelSpec

_QUANTISED = re.compile(
    r"layers\.\d+\.(attention\.(qkv_linear\.w[qkv]|wo)|feed_forward\.w[123]"
    r"|moe\.routed_experts\.inner_experts)"
)
_KEPT = re.compile(
    r"tok_embeddings|lm_head|norm"
    r"|layers\.\d+\.(attention_norm|ffn_norm|attention\.[qk]_norm|moe\.router\.gate)"
)


def quantised_layers(policy: Policy) -> dict[str, list[str]]:
    """Layers that are quantised, with the names of their parameters: the linears of attention and
    of dense feed-forwards, and experts. Embedding, output projection, norms and router gates keep
    the compute dtype: they are small, or decide tokens and experts directly.

    Raises:
        AssertionError: a parameter that is on neither list, or on both.
    """
    layers: dict[str, list[str]] = {}
    for name, _ in policy.named_parameters(remove_duplicate=False):
        layer = name.rpartition(".")[0]
        quantised, kept = _QUANTISED.fullmatch(layer), _KEPT.fullmatch(layer)
        assert bool(quantised) != bool(kept), f"{name}: neither or doubly listed for FP8"
        if quantised:
            layers.setdefault(layer, []).append(name)
    spec = policy.spec
    num_dense = spec.num_layers - spec.num_moe_layers
    expected = 4 * spec.num_layers + 3 * num_dense + spec.num_moe_layers
    assert len(layers) == expected, f"{len(layers)} layers to quantise, expected {expected}"
    return layers


def view_bytes(spec: ModelSpec, *, ep: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that an FP8 view holds on each rank of a CUDA device: `experts` and `dense` matrices
    with their scales, and `kept`, what stays in `dtype`."""
    model = build_model(spec)
    quantised = {name for names in quantised_layers(model).values() for name in names}
    held = {"experts": 0, "dense": 0, "kept": 0}
    for name, parameter in model.named_parameters():
        if name not in quantised:
            held["kept"] += parameter.numel() * dtype.itemsize
            continue
        num_scales = parameter.numel() // parameter.shape[-1]
        size = parameter.numel() * E4M3.itemsize + num_scales * torch.float32.itemsize
        if is_expert(name):
            held["experts"] += size // ep
        else:
            held["dense"] += size
    return held


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """What rounding did to the weights of each layer of `quantised_layers`, over all ranks."""

    rel_err: Mapping[str, float]
    """||W - dequantised|| / ||W||, Frobenius norms; NaN for weights that are not finite."""
    clip_frac: Mapping[str, float]
    """Share of elements outside E4M3's range under their row's scale: none lies above it, since
    the scale is set by the largest, so these are the non-zero ones that became zero."""

    def metrics(self, layers: Sequence[str]) -> dict[str, float]:
        """`fp8/*` over `layers`."""
        return {
            "fp8/layers": float(len(layers)),
            "fp8/rel_err_max": max((self.rel_err[name] for name in layers), default=0.0),
            "fp8/clip_frac": max((self.clip_frac[name] for name in layers), default=0.0),
        }


class ErrorSums:
    """Squared errors, squared norms, elements rounded to zero and elements, by layer."""

    def __init__(self, layers: Sequence[str], topology: Topology) -> None:
        self._topology = topology
        self._row = {layer: i for i, layer in enumerate(layers)}
        self._sums = torch.zeros((len(layers), 4), dtype=torch.float64, device=topology.device)

    def add(self, layer: str, weight: Tensor, values: Tensor, scale: Tensor) -> None:
        """Count rows of a layer's weight, and what they became."""
        back = dequantise(values, scale)
        self._sums[self._row[layer]] += torch.stack(
            [
                (weight - back).square().sum(dtype=torch.float64),
                weight.float().square().sum(dtype=torch.float64),
                (weight.count_nonzero() - back.count_nonzero()).double(),
                torch.tensor(float(weight.numel()), dtype=torch.float64, device=weight.device),
            ]
        )

    def reduce(self) -> LayerErrors:
        """Over all ranks; replicas count alike, so the ratios are those of one. Collective."""
        sums = self._topology.all_reduce_sum(self._sums).tolist()
        rows = dict(zip(self._row, sums, strict=True))
        return LayerErrors(
            # A matrix of zeros is represented exactly.
            rel_err={n: (e / w) ** 0.5 if w else 0.0 for n, (e, w, _, _) in rows.items()},
            clip_frac={n: lost / numel for n, (_, _, lost, numel) in rows.items()},
        )
