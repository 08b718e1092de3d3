"""Which attention decodes where, and how what is impossible is refused.

That the kernels are right is shown by test_paged_attention (gather), test_paged_decode (ours) and,
on a device, tests/gpu.
"""

import importlib.util
import inspect

import pytest
import torch
from torch.nn.attention import varlen

from compass.errors import UserError
from compass.generate.attention.decode_backends import (
    BACKENDS,
    DecodeTables,
    VarlenDecode,
    choose_attention,
)
from compass.generate.attention.kv_cache import KVCache
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from tests.generate.tiny_policy import TINY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def choose(name: str, device=CUDA, kv_dtype=torch.bfloat16, block_size=256) -> str:
    return choose_attention(name, device=device, kv_dtype=kv_dtype, block_size=block_size)


def with_block_tables(q, k, v, cu_q, cu_k, max_q, max_k, *, block_table=None):
    """`varlen_attn` as of torch 2.12, as far as matters here."""


def without_block_tables(q, k, v, cu_q, cu_k, max_q, max_k):
    """`varlen_attn` as of torch 2.11."""


@pytest.fixture
def installed(monkeypatch) -> set[str]:
    """Packages that count as installed, beside a torch of 2.12."""
    monkeypatch.setattr(varlen, "varlen_attn", with_block_tables)
    names = {"triton", "flash_attn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)
    return names


def test_auto_is_gather_on_cpu_and_our_kernel_on_cuda(installed) -> None:
    assert choose("auto", CPU) == "gather"
    assert choose("auto") == "triton"
    installed.remove("triton")
    assert choose("auto") == "gather"


def test_a_backend_that_can_run_is_taken_at_its_word(installed) -> None:
    for name in BACKENDS:
        assert choose(name) == name
    assert choose("gather", CPU, torch.float32, 3) == "gather"
    assert choose("triton", CUDA, torch.float8_e4m3fn, 3) == "triton"


@pytest.mark.parametrize("name", ["triton", "varlen", "flash"])
def test_kernels_are_refused_on_the_cpu(name, policy, topology) -> None:
    with pytest.raises(UserError, match=rf"attention={name} on cpu.*generator\.attention=gather"):
        Generator(policy, GeneratorConfig(attention=name), topology)


@pytest.mark.parametrize(("name", "package"), [("triton", "triton"), ("flash", "flash_attn")])
def test_a_missing_package_is_named(name, package, installed) -> None:
    installed.remove(package)
    with pytest.raises(UserError, match=f"attention={name}: the package {package} is not"):
        choose(name)


@pytest.mark.parametrize("name", ["varlen", "flash"])
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"block_size": 16}, "block_size=16; set it to 256"),
        ({"kv_dtype": torch.float8_e4m3fn}, "not float8_e4m3fn"),
        ({"kv_dtype": torch.float32}, "not float32"),
    ],
)
def test_what_flash_attention_does_not_take_is_refused(name, setting, named, installed) -> None:
    with pytest.raises(UserError, match=named):
        choose(name, **setting)


def test_varlen_without_block_tables_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", without_block_tables)
    with pytest.raises(UserError, match=r"no block tables; install torch 2\.12 or newer"):
        choose("varlen")


def test_varlen_is_called_as_torch_declares_it() -> None:
    # Its kernel needs a device. That the call fits the declaration, and what comes back, does not.
    tables = DecodeTables(
        blocks_BP=torch.zeros(3, 2, dtype=torch.int32, device="meta"),
        lengths_B=torch.ones(3, dtype=torch.int32, device="meta"),
        max_length=300,
    )
    cache = KVCache(TINY, num_blocks=4, block_size=256, dtype=torch.bfloat16, device="meta")
    q_BNH = torch.zeros(3, TINY.num_heads, TINY.head_dim, dtype=torch.bfloat16, device="meta")
    decode = VarlenDecode(cache, tables)
    if "block_table" in inspect.signature(varlen.varlen_attn).parameters:
        assert decode.attend(0, q_BNH, 0.3).shape == q_BNH.shape
    else:  # torch 2.11, where `choose_attention` never comes this far
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            decode.attend(0, q_BNH, 0.3)
