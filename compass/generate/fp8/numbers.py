"""E4M3 numbers, and the layers that multiply by them (arXiv 2512.07710 table 1).

A matrix is quantised row by row along the dimension it is contracted over, which is always its
last: `[out, in]` for a linear, `[E, out, in]` for experts. A row's scale never depends on another
row, so shards that hold whole rows quantise to the very bytes of the full matrix.

Two ways to multiply, with one meaning. On CUDA, `scaled_mm` and `scaled_grouped_mm` take E4M3 on
both sides and sum in float32. Elsewhere weights
are dequantised once per refresh, activations are rounded to E4M3 and back, and the usual float32
products follow: the same numbers multiplied, summed in another order.

Shape legend: T tokens or rows, I contracted width, O output width, E local experts, D model width,
F expert width, R routed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
_E4M3_VALUES = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
ROW_KERNEL_DEVICES = {"cuda"}
"""Device types whose rows are rounded by the kernel of `quantise_rows`."""
_TILE = 16
"""`scaled_mm` wants both widths of a matrix to be multiples of this."""


def row_scales(x: Tensor) -> Tensor:
    """[..., I] -> float32 [...]: amax / 448, so that the largest element of a row becomes 448.

    A row of zeros gets scale 1. A row with an infinity or a NaN gets a scale that is none either,
    and stays as broken as it was.
    """
    amax = x.float().abs().amax(dim=-1)
    # Below 448 times the smallest normal float32, amax / 448 would lose digits or be zero.
    scale = (amax / E4M3_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(amax == 0, 1.0, scale)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., I] -> E4M3 [..., I] and float32 scales [...], with x about equal to their product.

    One kernel where there is one for the device, with the same bits.
    """
    if x.device.type in ROW_KERNEL_DEVICES:
        values, scale = torch.ops.compass.quantise_rows(x.flatten(0, -2))
        return values.view(x.shape), scale.view(x.shape[:-1])
    return _quantise(x)


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = row_scales(x)
    # The quotient of the largest element can round to just above 448, which E4M3 would call NaN.
    scaled = (x.float() / scale[..., None]).clamp_(-E4M3_MAX, E4M3_MAX)
    return scaled.to(E4M3), scale


# An operator, so that tensors without data go through it too: a kernel needs an address.
torch.library.define("compass::quantise_rows", "(Tensor x) -> (Tensor, Tensor)")


@torch.library.impl("compass::quantise_rows", "CUDA")
def _quantise_by_kernel(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    from compass.generate.fp8.quantise_rows import quantise_rows

    return quantise_rows(x_RI)


torch.library.impl("compass::quantise_rows", "CPU", _quantise)


@torch.library.register_fake("compass::quantise_rows")
def _quantise_nothing(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_RI, dtype=E4M3), x_RI.new_empty(len(x_RI), dtype=torch.float32)


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """E4M3 [..., I] and scales [...] -> float32 [..., I]."""
    return widen(values).mul_(scale[..., None])


def widen(values: Tensor) -> Tensor:
    """E4M3 as float32, exactly. By table on the CPU: torch converts six times more slowly."""
    if values.device.type != "cpu":
        return values.float()
    codes = values.contiguous().view(torch.uint8).flatten().int()
    return _E4M3_VALUES.index_select(0, codes).view(values.shape)


class _Rows(NamedTuple):
    """Activations ready to be multiplied by any number of matrices of one layer."""

    values_TI: Tensor
    """E4M3 on CUDA; otherwise float32, rounded to E4M3 or, with plain activations, as it came."""
    scale_T: Tensor | None
    """Of E4M3 rows."""


class Fp8Matrix(nn.Module):
    """Persistent E4M3 buffers of one matrix, [O, I] or [E, O, I], and products with it.

    `values` and `scale` are written from outside, in place; `refresh` then follows them. Their
    addresses never change, so a captured CUDA graph stays valid.
    """

    values: Tensor
    scale: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        quantise_activations: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`dtype` is that of the products' results."""
        super().__init__()
        self.quantise_activations = quantise_activations
        self.dtype = dtype
        self.register_buffer("values", torch.empty(shape, dtype=E4M3, device=device))
        self.register_buffer("scale", torch.empty(shape[:-1], device=device))
        self.scaled = quantise_activations and _has_scaled_mm(device, shape)
        # The CPU has no product in E4M3: it keeps the float32 numbers that the bytes stand for.
        self._wide = torch.empty(shape) if device.type == "cpu" else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Follow new `values` and `scale`."""
        if self._wide is not None:
            self._wide.copy_(dequantise(self.values, self.scale))

    def prepare(self, x_TI: Tensor) -> _Rows:
        """Quantise activations, each row with its own scale (dynamic, per token)."""
        if self.scaled:
            return _Rows(*quantise(x_TI))
        if not self.quantise_activations:
            return _Rows(x_TI.float() if self._wide is not None else x_TI, None)
        return _Rows(dequantise(*quantise(x_TI)), None)

    def linear(self, rows: _Rows) -> Tensor:
        """[T, O] = rows times the transpose of the matrix [O, I]."""
        if rows.scale_T is not None:
            out_TO = scaled_linear(rows.values_TI, rows.scale_T, self.values, self.scale)
        else:
            weight_OI = self._dequantised(rows.values_TI.dtype)
            out_TO = F.linear(rows.values_TI, weight_OI)
        return out_TO.to(self.dtype)

    def grouped(self, rows: _Rows, ends_E: Tensor) -> Tensor:
        """[T, O]: rows up to ends_E[0] times the first expert's matrix, and so on."""
        if rows.scale_T is not None:
            out_TO = _scaled_grouped(rows.values_TI, rows.scale_T, self.values, self.scale, ends_E)
        else:
            weight_EOI = self._dequantised(rows.values_TI.dtype)
            out_TO = F.grouped_mm(rows.values_TI, weight_EOI.transpose(-2, -1), offs=ends_E)
        return out_TO.to(self.dtype)

    def _dequantised(self, dtype: torch.dtype) -> Tensor:
        if self._wide is not None:
            return self._wide
        return dequantise(self.values, self.scale).to(dtype)


class Fp8Linear(nn.Module):
    """Stands in for a `Linear` without bias."""

    def __init__(self, matrix: Fp8Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.values.shape

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return multiply_all([self], x)[0]


def multiply_all(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What each layer makes of x, which is rounded once for all that take it in one form."""
    prepared: dict[bool, _Rows] = {}
    outs = []
    for linear in linears:
        if not isinstance(linear, Fp8Linear):  # over the error limit
            outs.append(linear(x))
            continue
        matrix = linear.matrix
        if matrix.scaled not in prepared:
            prepared[matrix.scaled] = matrix.prepare(x.flatten(0, -2))
        outs.append(matrix.linear(prepared[matrix.scaled]).unflatten(0, x.shape[:-1]))
    return outs


class Fp8QKV(nn.Module):
    """Stands in for `PolicyQKV`: three projections of one input."""

    def __init__(self, wq: nn.Module, wk: nn.Module, wv: nn.Module, head_dim: int) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = wq, wk, wv
        self.head_dim = head_dim

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, D] -> q [B, L, N, H], k and v [B, L, G, H]."""
        flat = multiply_all([self.wq, self.wk, self.wv], x_BLD)
        q, k, v = (y.unflatten(-1, (y.shape[-1] // self.head_dim, self.head_dim)) for y in flat)
        return q, k, v


class Fp8FeedForward(nn.Module):
    """Stands in for a dense SwiGLU feed-forward."""

    def __init__(self, w1: nn.Module, w2: nn.Module, w3: nn.Module) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = w1, w2, w3

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        gate_BLF, up_BLF = multiply_all([self.w1, self.w3], x_BLD)
        return self.w2(F.silu(gate_BLF) * up_BLF)


class Fp8Experts(nn.Module):
    """Stands in for `PolicyExperts`: SwiGLU over this rank's experts."""

    def __init__(self, w1_EFD: Fp8Matrix, w2_EDF: Fp8Matrix, w3_EFD: Fp8Matrix) -> None:
        super().__init__()
        self.w1_EFD, self.w2_EDF, self.w3_EFD = w1_EFD, w2_EDF, w3_EFD

    def forward(self, x_RD: Tensor, ends_E: Tensor) -> Tensor:
        """[R, D] rows sorted by local expert, whose rows end before `ends_E` -> [R, D]."""
        rows = self.w1_EFD.prepare(x_RD)
        gate_RF = self.w1_EFD.grouped(rows, ends_E)
        up_RF = self.w3_EFD.grouped(rows, ends_E)
        return self.w2_EDF.grouped(self.w2_EDF.prepare(F.silu(gate_RF) * up_RF), ends_E)


def scaled_linear(
    x_TI: Tensor,
    x_scale_T: Tensor,
    weight_OI: Tensor,
    weight_scale_O: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """[T, O] product of E4M3 with E4M3, summed in float32. On CUDA `dtype` must be bfloat16."""
    if len(x_TI) == 0:  # an expert-parallel rank without work; the kernels take no empty matrix
        return x_TI.new_empty((0, len(weight_OI)), dtype=dtype)
    return F.scaled_mm(
        x_TI,
        weight_OI.t(),
        scale_a=x_scale_T[:, None],
        scale_recipe_a=ScalingType.RowWise,
        scale_b=weight_scale_O[None, :],
        scale_recipe_b=ScalingType.RowWise,
        output_dtype=dtype,
    )


def _scaled_grouped(
    x_TI: Tensor, x_scale_T: Tensor, weight_EOI: Tensor, weight_scale_EO: Tensor, ends_E: Tensor
) -> Tensor:
    if len(x_TI) == 0:
        return x_TI.new_empty((0, weight_EOI.shape[1]), dtype=torch.bfloat16)
    return F.scaled_grouped_mm(  # type: ignore[attr-defined]  # the stubs lack it
        x_TI,
        weight_EOI.transpose(-2, -1),
        scale_a=x_scale_T,
        scale_recipe_a=ScalingType.RowWise,
        scale_b=weight_scale_EO,
        scale_recipe_b=ScalingType.RowWise,
        offs=ends_E,
        output_dtype=torch.bfloat16,
    )


def _has_scaled_mm(device: torch.device, shape: tuple[int, ...]) -> bool:
    """Whether the device multiplies E4M3 matrices of this shape. `scaled_grouped_mm` begins with
    Hopper; older devices keep the E4M3 buffers and dequantise a layer at a time."""
    if device.type != "cuda" or any(width % _TILE for width in shape[-2:]):
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
