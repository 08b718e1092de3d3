"""E4M3 rounding against torchao, and products of quantised layers against loops and `scaled_mm`."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

from compass.generate.fp8 import numbers as fp8
from compass.generate.fp8.layers import quantised_layers
from compass.generate.fp8.numbers import (
    E4M3,
    Fp8Experts,
    Fp8Linear,
    Fp8Matrix,
    dequantise,
    quantise,
    scaled_linear,
    widen,
)
from compass.generate.fp8.view import share_inputs
from compass.models.context import ForwardContext
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import is_expert
from compass.models.policy import Policy
from tests.fake_policy import fake_policy

ALL_CODES = torch.arange(256, dtype=torch.uint8).view(E4M3)
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(weight: torch.Tensor, *, quantise_activations: bool = True) -> Fp8Matrix:
    made = Fp8Matrix(
        tuple(weight.shape),
        quantise_activations=quantise_activations,
        dtype=torch.float32,
        device=CPU,
    )
    for buffer, source in zip((made.values, made.scale), quantise(weight), strict=True):
        buffer.copy_(source)
    made.refresh()
    return made


@pytest.mark.parametrize("shape", [(7, 33), (4, 6, 50), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_and_scales_are_those_of_torchao(shape, dtype) -> None:
    spread = normal(*shape[:-1], 1, seed=1).mul(4).exp()  # rows of very different size
    x = (normal(*shape) * spread).to(dtype)
    values, scale = quantise(x)
    expected = Float8Tensor.from_hp(x.float())
    assert torch.equal(values.view(torch.uint8), expected.qdata.view(torch.uint8))
    assert torch.equal(scale, expected.scale.flatten(-2))
    torch.testing.assert_close(dequantise(values, scale), expected.dequantize(), rtol=0, atol=0)


ELEMENTS = st.floats(2.0**-90, 2.0**90, width=32).flatmap(lambda x: st.sampled_from([x, -x, 0.0]))


@given(row=st.lists(ELEMENTS, min_size=1, max_size=20))
def test_no_element_is_off_by_more_than_half_a_step(row) -> None:
    """Three mantissa bits: half a step is 1/16 of an element, or of the smallest normal number."""
    x = torch.tensor([row])
    values, scale = quantise(x)
    largest = max(abs(element) for element in row)
    step = scale.item() * 2**-9
    for element, back in zip(row, dequantise(values, scale)[0].tolist(), strict=True):
        assert abs(element - back) <= 1.0001 * max(abs(element) / 16, step / 2)
    assert dequantise(values, scale).abs().max().item() == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-38, 1e-30, 3e38])
def test_rows_of_any_finite_size_stay_finite(size) -> None:
    x = normal(3, 8).clamp(-1, 1)
    x[1] *= size
    values, scale = quantise(x)
    assert scale.isfinite().all()
    assert (scale > 0).all()
    back = dequantise(values, scale)
    assert back.isfinite().all()
    assert torch.equal(back[0], dequantise(*quantise(x[:1]))[0])
    # The smallest scale is the smallest normal float32, whose steps are 2^-9 of it.
    torch.testing.assert_close(back[1], x[1], rtol=1 / 15, atol=1e-40)


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_a_broken_row_stays_broken_and_alone(broken) -> None:
    x = normal(3, 8)
    x[1, 2] = broken
    back = dequantise(*quantise(x))
    assert not back[1].isfinite().all()
    assert back[[0, 2]].isfinite().all()


def test_widening_is_exact_for_every_code() -> None:
    torch.testing.assert_close(widen(ALL_CODES), ALL_CODES.float(), rtol=0, atol=0, equal_nan=True)
    crossed = ALL_CODES[:126].reshape(2, 63).t()
    assert torch.equal(widen(crossed), crossed.float())


@given(cut=st.integers(0, 9), seed=st.integers(0, 20))
def test_a_shard_of_rows_quantises_to_the_rows_of_the_whole(cut, seed) -> None:
    whole = normal(9, 4, 10, seed=seed)
    (upper, upper_scale), (lower, lower_scale) = quantise(whole[:cut]), quantise(whole[cut:])
    values, scale = quantise(whole)
    both = torch.cat([upper.view(torch.uint8), lower.view(torch.uint8)])
    assert torch.equal(both, values.view(torch.uint8))
    assert torch.equal(torch.cat([upper_scale, lower_scale]), scale)


@pytest.mark.parametrize("quantise_activations", [True, False])
def test_a_linear_multiplies_rounded_rows_by_rounded_rows(quantise_activations) -> None:
    weight, x = normal(12, 40), normal(2, 3, 40, seed=1)
    layer = Fp8Linear(matrix(weight, quantise_activations=quantise_activations))
    seen = dequantise(*quantise(x)) if quantise_activations else x
    back = Float8Tensor.from_hp(weight).dequantize()
    expected = torch.tensor(
        [[[math.fsum((r * w).tolist()) for w in back] for r in rows] for rows in seen]
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    assert layer(x[:, :0]).shape == (2, 0, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpus_meaning_is_that_of_scaled_mm(dtype) -> None:
    """The product that CUDA takes, on the same E4M3 bytes."""
    weight, x = normal(32, 64) * normal(32, 1, seed=2).exp(), normal(5, 64, seed=1)
    by_kernel = scaled_linear(*quantise(x), *quantise(weight), dtype=dtype)
    by_layer = Fp8Linear(matrix(weight))(x)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(by_kernel.float(), by_layer, rtol=tolerance, atol=1e-4)
    assert scaled_linear(*quantise(x[:0]), *quantise(weight), dtype=dtype).shape == (0, 32)


@pytest.mark.parametrize("tokens_per_expert", [[3, 0, 4], [0, 0, 0], [7, 0, 0]])
def test_experts_are_a_loop_over_experts(tokens_per_expert) -> None:
    w1, w2, w3 = normal(3, 24, 16), normal(3, 16, 24, seed=1), normal(3, 24, 16, seed=2)
    x = normal(sum(tokens_per_expert), 16, seed=3)
    layer = Fp8Experts(matrix(w1), matrix(w2), matrix(w3))
    rounded = [dequantise(*quantise(w)) for w in (w1, w2, w3)]
    expected = []
    for expert, rows in enumerate(x.split(tokens_per_expert)):
        up, down, gate = (w[expert] for w in rounded)
        rows = dequantise(*quantise(rows))
        inner = F.silu(rows @ up.t()) * (rows @ gate.t())
        expected.append(dequantise(*quantise(inner)) @ down.t())
    out = layer(x, torch.tensor(tokens_per_expert).cumsum(0, dtype=torch.int32))
    # An activation near the middle of two E4M3 numbers can go to either: 1/16 of one of 24 terms.
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-2, atol=1e-2)


# ---- launches, as on CUDA


class Launches(TorchDispatchMode):
    """Operations that would run something on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        returns = function._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        name = function.name()
        if not is_view and not any(part in name for part in ("prim::", "empty", "view")):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def in_fp8(model: Policy) -> Policy:
    for layer, names in quantised_layers(model).items():
        parent, _, place = layer.rpartition(".")
        matrices = {}
        for name in names:
            parameter = dict(model.named_parameters())[name]
            made = Fp8Matrix(
                tuple(parameter.shape), quantise_activations=True, dtype=torch.bfloat16, device=CPU
            )
            made._wide = None
            matrices[name.rpartition(".")[2]] = made
        module = Fp8Experts(**matrices) if is_expert(names[0]) else Fp8Linear(matrices["weight"])
        setattr(model.get_submodule(parent), place, module)
    share_inputs(model)
    return model


def grouped_on_any_device(x, x_scale, weight_EOI, weight_scale, ends):
    """One operation, as `scaled_grouped_mm` is; the CPU knows not even the shape of its result."""
    return x.new_zeros((len(x), weight_EOI.shape[1]), dtype=torch.bfloat16)


def launches_of_a_layer(monkeypatch: pytest.MonkeyPatch, spec: str, quantised: bool) -> list[str]:
    monkeypatch.setattr(fp8, "_has_scaled_mm", lambda device, shape: True)
    monkeypatch.setattr(fp8, "ROW_KERNEL_DEVICES", {"cpu"})
    monkeypatch.setattr(fp8, "_scaled_grouped", grouped_on_any_device)
    context = ForwardContext(attention=PackedAttention((8,), "cpu"), routing=None)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        policy = fake_policy(1, spec)
        block = (in_fp8(policy) if quantised else policy).blocks[0]
        x_BLD = torch.empty(1, 8, policy.spec.hidden_size, dtype=torch.bfloat16)
        with Launches() as launches:
            block(x_BLD, context, torch.arange(8)[None])
    return launches.names


@pytest.mark.parametrize("spec", ["30b-a3b", "debug"])
def test_rounding_activations_adds_four_launches_to_a_layer(spec, monkeypatch) -> None:
    plain = launches_of_a_layer(monkeypatch, spec, quantised=False)
    rounded = launches_of_a_layer(monkeypatch, spec, quantised=True)
    assert rounded.count("compass::quantise_rows") == 4
    assert len(rounded) - len(plain) <= 4
