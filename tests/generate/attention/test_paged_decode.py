"""The paged-decode kernel without a GPU: interpreted for its numbers, compiled for its targets."""

import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compass.generate.attention import paged_decode
from compass.models.specs import SPECS
from tests.generate.attention import paged_decode_cases
from tests.interpreted import interpreted_outcomes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted_outcomes("tests.generate.attention.paged_decode_cases")


@pytest.mark.parametrize("case", paged_decode_cases.CASES)
def test_interpreted_on_the_cpu(case, outcomes) -> None:
    assert outcomes[case] == "passed"


POINTERS = {
    "q_ptr": "*bf16",
    "key_ptr": "*bf16",
    "value_ptr": "*bf16",
    "key_scale_ptr": "*fp32",
    "value_scale_ptr": "*fp32",
    "table_ptr": "*i32",
    "length_ptr": "*i32",
    "out_ptr": "*bf16",
    "partial_ptr": "*fp32",
    "stats_ptr": "*fp32",
}


def compile_for(kernel, capability: int, constants: dict, types: dict):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in POINTERS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": 2},
    )


def resources(kernel, folder: Path) -> str:
    """Registers, stack and shared memory of the machine code."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", folder / "kernel.cubin"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


TF32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
HALF = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "kv", "product"),
    [
        (80, "*bf16", TF32),
        (90, "*bf16", TF32),
        (100, "*bf16", TF32),
        (80, "*u8", HALF),  # E4M3 where it must be decoded by hand
        (90, "*fp8e4nv", HALF),
        (100, "*fp8e4nv", HALF),
    ],
)
@pytest.mark.parametrize("spec", ["30b-a3b", "235b-a22b"])
def test_compiles_to_machine_code(capability, kv, product, spec, tmp_path) -> None:
    sizes = paged_decode.kernel_sizes(
        SPECS[spec].num_heads, SPECS[spec].num_kv_heads, SPECS[spec].head_dim
    )
    types = POINTERS | {"scale_log2": "fp32", "table_stride": "i32", "C": "i32"}
    types |= {"key_ptr": kv, "value_ptr": kv}
    for alone in (False, True):
        kernel = compile_for(
            paged_decode._attend_to_split,
            capability,
            {
                **sizes,
                "BLOCK_SIZE": 16,
                "SCALED": kv != "*bf16",
                "SPLIT_COUNT_IS_ONE": alone,
                "PRECISION": "tf32",
            },
            types,
        )
        assert kernel.asm["cubin"]
        # Every multiprocessor of these targets has at least 164 KB: room for three programs.
        assert kernel.metadata.shared <= 48 * 1024
        # Both products on tensor cores: exact ones of bfloat16, and 11 bits of the weights.
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in kernel.asm["ptx"]
        assert product in kernel.asm["ptx"]
        # Pages are copied while earlier ones are computed on, and no register is spilled.
        assert "cp.async" in kernel.asm["ptx"]
        assert "STACK:0 " in resources(kernel, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_reduction_compiles_to_machine_code(capability) -> None:
    sizes = {"N": 32, "H": 128, "H_PAD": 128, "SPLIT": paged_decode.SPLIT_TOKENS, "TILE": 16}
    kernel = compile_for(paged_decode._add_splits, capability, sizes, POINTERS | {"C": "i32"})
    assert kernel.asm["cubin"]
