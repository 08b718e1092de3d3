"""The kernel that rounds rows to E4M3, without a GPU: interpreted, against torch's own rounding."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compass.generate.fp8 import quantise_rows
from compass.machine import trial_kernel
from tests.generate.fp8 import quantise_rows_cases
from tests.interpreted import interpreted_outcomes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted_outcomes("tests.generate.fp8.quantise_rows_cases")


@pytest.mark.parametrize("case", quantise_rows_cases.CASES)
def test_interpreted_on_the_cpu(case, outcomes) -> None:
    assert outcomes[case] == "passed"


def compile_for(kernel, capability: int, constants: dict, types: dict):
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
@pytest.mark.parametrize("width", [128, 768, 2048, 12288])
def test_compiles_to_machine_code(capability, dtype, width, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    types = {"x_ptr": dtype, "value_ptr": "*u8", "scale_ptr": "*fp32"}
    sizes = {"I": width, "TILE": quantise_rows.tile_elements(width)}
    kernel = compile_for(quantise_rows._round_row, capability, sizes, types)
    assert kernel.asm["cubin"]
    assert "div.rn.f32" in kernel.asm["ptx"]  # rounds as the CPU does


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_trial_kernel_compiles(capability, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    kernel = compile_for(trial_kernel._write_one, capability, {}, {"ptr": "*i32"})
    assert kernel.asm["cubin"]
