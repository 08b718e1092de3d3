"""The policy's Triton kernels without a GPU: interpreted for numbers, compiled for targets."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compass.models.kernels import combine, rotate, sort
from tests.interpreted import interpreted_outcomes
from tests.models import kernel_cases


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted_outcomes("tests.models.kernel_cases")


@pytest.mark.parametrize("case", kernel_cases.CASES)
def test_interpreted_on_the_cpu(case, outcomes) -> None:
    assert outcomes[case] == "passed"


KERNELS = {
    "combine": (combine._combine, {"K": 8, "HAS_END": True, "BLOCK": 1024}),
    "combine_back": (combine._combine_back, {"K": 8, "BLOCK": 1024}),
    "rotate": (rotate._rotate, {"N": 32, "N_PAD": 32, "HALF": 64, "HALF_PAD": 64}),
    "sort": (sort._sort, {"TILE": 4096}),
}
TYPES = {
    "rows_ptr": "*bf16",
    "place_ptr": "*i64",
    "gates_ptr": "*fp32",
    "end_ptr": "*i32",
    "out_ptr": "*bf16",
    "grad_ptr": "*bf16",
    "grad_rows_ptr": "*bf16",
    "grad_gates_ptr": "*fp32",
    "x_ptr": "*bf16",
    "table_ptr": "*fp32",
    "positions_ptr": "*i64",
    "expert_ptr": "*i64",
    "order_ptr": "*i64",
    "ends_ptr": "*i32",
    "sign": "fp32",
    "D": "i32",
    "N": "i32",
}


@pytest.mark.long
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_to_machine_code(name, capability, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    kernel, constants = KERNELS[name]
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else TYPES[n] for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
