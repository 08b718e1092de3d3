"""An accelerator without numbers: what a GPU would be given to do, found on a CPU.

Tensors lie on a backend of our own, under fake tensors: shapes, types and devices are real, and
operations on tensors of two devices raise as they do on a GPU. What the host reads, for which it
would wait, is counted and answered with zeros; so are the kernels that would be launched.

A backend stays for good, and torch asks whatever backend is there for what others are to do. So all
of this happens in a process of its own (`elsewhere`).
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from compass.generate import model_runner, sampler, sampling
from compass.generate.attention import kv_cache, paged_attention
from compass.generate.attention.decode_backends import DecodeTables
from compass.generate.attention.kv_cache import KVCache
from compass.models import lockstep
from compass.models.layers import attention, dispatch, products, vocabulary
from compass.models.layers.norm import PolicyNorm
from compass.models.layers.rotary import PolicyRotary
from compass.models.policy import Policy
from compass.models.specs import ModelSpec

_NAME = "fakegpu"
ACCELERATOR = torch.device("privateuseone", 0)
"""Called `fakegpu` where it is set up."""

_NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("alias", "as_strided", "chunk", "detach", "expand", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
    *("_unsafe_view", "_reshape_alias", "device", "is_same_size", "sym_numel", "sym_size"),
    *("sym_stride", "lift_fresh", "wait_tensor", "_local_scalar_dense"),
}
"""Operations that only describe memory, or ask for it."""


@torch.library.custom_op("fake_accelerator::kernel", mutates_args=())
def kernel(x: Tensor) -> Tensor:
    """Stands for one kernel, whatever it computes."""
    return torch.empty_like(x)


@kernel.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


kernel.register_autograd(lambda ctx, grad: kernel(grad))


@torch.library.custom_op("fake_accelerator::weighed", mutates_args=())
def weighed(x: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """A kernel with weights, which may get gradients."""
    return x.new_empty((num_rows, *x.shape[1:]))


@weighed.register_fake
def _(x: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    return x.new_empty((num_rows, *x.shape[1:]))


def _weighed_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weights = ctx.saved_tensors
    return kernel(x), kernel(weights), None


weighed.register_autograd(
    _weighed_back,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)


class Watch(TorchDispatchMode):
    """Counts kernels by operation, and reads by where Compass asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.uploads: Counter[torch.dtype] = Counter()
        """Elements that went to the accelerator, by type."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        source = args[0] if args and isinstance(args[0], Tensor) else None
        on_accelerator = source is not None and source.device == ACCELERATOR
        if on_accelerator and _reads(name, args, kwargs):
            self.reads[_place()] += 1
        if name == "_to_copy" and not on_accelerator and kwargs.get("device") == ACCELERATOR:
            self.uploads[args[0].dtype] += args[0].numel()
        answer = _answer(name, args, kwargs)
        result = function(*args, **kwargs) if answer is None else answer
        if name not in _NO_KERNEL and _touches(args, result):
            self.kernels[name] += 1
        return result


def _reads(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name == "_to_copy":
        return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    return name in ("_local_scalar_dense", "nonzero", "bincount") or _masks(name, args)


def _masks(name: str, args: Sequence[Any]) -> bool:
    """Picking by truth has a result whose size the host must know."""
    return name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])


def _answer(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What depends on numbers, of which there are none."""
    if name == "_local_scalar_dense":
        return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
    if name == "bincount":
        return args[0].new_zeros(max(args[2] if len(args) > 2 else 0, 1))
    if name == "nonzero":
        return args[0].new_zeros((0, args[0].ndim), dtype=torch.int64)
    if _masks(name, args):
        return args[0][:2]
    return None


def _touches(args: Sequence[Any], result: Any) -> bool:
    tensors = [x for x in torch.utils._pytree.tree_leaves((args, result)) if isinstance(x, Tensor)]
    return any(x.device == ACCELERATOR for x in tensors)


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if "/compass/" in f.filename]
    return frames[-1].filename.rpartition("/compass/")[2] if frames else "a test"


@contextmanager
def accelerator() -> Iterator[Watch]:
    """Everything in here happens to tensors without numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        yield watch


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Calls a function, with arguments, in a process that has the accelerator."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_set_up) as pool:
        yield lambda body, *args: pool.submit(_call, body, *args).result()


def _call(body: Callable[..., Any], *args: Any) -> Any:
    """Not every error of torch can be sent to another process; its words can."""
    try:
        return body(*args)
    except Exception as error:
        words = "".join(traceback.format_exception(error))
    raise AssertionError(words)


def _set_up() -> None:
    """The accelerator takes CUDA's part where Compass asks for a device's type. Where that runs a
    kernel of ours, or PyTorch's fused RMSNorm, it is one kernel here, too."""
    _setup_privateuseone_for_python_backend(_NAME)
    # A single number is known, and would be sent to the accelerator itself.
    fake_tensor.CONSTANT_NUMEL_LIMIT = -1
    # Asked by activation checkpointing.
    getattr(torch, _NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    vocabulary.ROWS_PER_CHUNK[_NAME] = vocabulary.ROWS_PER_CHUNK["cuda"]
    sampling.LOGITS_PER_CHUNK[_NAME] = sampling.LOGITS_PER_CHUNK["cuda"]
    attention.KERNEL_DEVICES.add(_NAME)
    products.WIDE_DEVICES.add(_NAME)
    PolicyNorm.forward = lambda self, x: weighed(x, self.weight, len(x))
    PolicyRotary.forward = lambda self, query, key, positions: (kernel(query), kernel(key))
    for module in (kv_cache, model_runner, paged_attention, sampler):
        module.to_device = _to_device
    for module in (dispatch, lockstep):
        module.sort_choices = _sort_choices
    dispatch.sum_choices = _sum_choices
    lockstep.sum_first_choices = _sum_first_choices


def _to_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As on CUDA, by way of the host."""
    return torch.tensor(values, dtype=dtype).to(device)


def _sort_choices(expert_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order_N = kernel(expert_N).new_empty(len(expert_N), dtype=torch.int64)
    ends_E = expert_N.new_empty(num_experts, dtype=torch.int32)
    return order_N, torch.empty_like(order_N), ends_E


def _sum_choices(rows_RD: Tensor, order_N: Tensor, place_N: Tensor, gates_TK: Tensor) -> Tensor:
    return weighed(rows_RD, gates_TK, len(gates_TK))


def _sum_first_choices(rows_RD: Tensor, place_N: Tensor, gates_TK: Tensor, end: Tensor) -> Tensor:
    return weighed(rows_RD, gates_TK, len(gates_TK)).float()


def move(model: Policy, dtype: torch.dtype, *, ep: int = 1, trains: bool = False) -> None:
    """Give a model without weights some on the accelerator: of the experts, a rank's share."""
    for name, parameter in list(model.named_parameters()):
        parent, _, place = name.rpartition(".")
        shape = list(parameter.shape)
        if ".inner_experts." in name:
            shape[0] //= ep
        there = torch.empty(shape, dtype=dtype, device=ACCELERATOR)
        module = model.get_submodule(parent)
        module._parameters[place] = nn.Parameter(there, requires_grad=trains)
    spec: ModelSpec = model.spec
    model.rope.cache = torch.empty((spec.max_seq_len, 2 * spec.head_dim), device=ACCELERATOR)
    model.compute_dtype = dtype


class TwoKernels:
    """A decode backend (`DecodeBackend`) of as many kernels as ours, all on one device."""

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        self.tables = tables
        self.cache = cache

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        places = (q_BNH, self.tables.blocks_BP, self.tables.lengths_B, self.cache.keys[layer])
        assert {x.device for x in places} == {ACCELERATOR}
        return kernel(kernel(q_BNH))
