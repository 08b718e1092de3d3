"""CUDA's branches on the CPU: kernels registered for what only CUDA has.

For what `varlen_attn` calls they compute as FlashAttention does: operands in 16 bits, scores and
sums in float32, weights of the softmax rounded to 16 bits before they meet the values. Products of
bfloat16 matrices into float32 are exact but for the order of summation.

Shape legend: T queries and S keys of one sequence, N query heads, G key heads, H head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compass.models.layers import attention, products

calls: list[tuple[Any, ...]] = []
"""(dtype of q, heads of q, heads of k, queries, keys) of each call of the forward kernel."""


def _scores(q_TNH: Tensor, k_SNH: Tensor, scale: float) -> Tensor:
    """[N, T, S], the last query seeing all keys."""
    scores_NTS = torch.einsum("tnh,snh->nts", q_TNH.float(), k_SNH.float()) * scale
    T, S = scores_NTS.shape[1:]
    return scores_NTS.masked_fill(~torch.ones(T, S).bool().tril(S - T), -torch.inf)


def _parts(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor) -> Iterator[Any]:
    """Rows of each sequence among queries and keys, with keys and values for each query head."""
    repeats = q.shape[1] // k.shape[1]
    ends = zip(q_starts.tolist()[1:], k_starts.tolist()[1:], strict=True)
    first_q = first_k = 0
    for end_q, end_k in ends:
        rows, keys = slice(first_q, end_q), slice(first_k, end_k)
        wide = (x[keys].repeat_interleave(repeats, dim=1) for x in (k, v))
        yield rows, keys, *wide
        first_q, first_k = end_q, end_k


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, ...]:
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in (torch.bfloat16, torch.float16), "FlashAttention takes 16 bits only"
    assert q_starts.dtype == k_starts.dtype == torch.int32
    assert (options["window_size_left"], options["window_size_right"]) == (-1, 0)
    calls.append((q.dtype, q.shape[1], k.shape[1], len(q), len(k)))
    out, log_z = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    for rows, _, k_SNH, v_SNH in _parts(q, k, v, q_starts, k_starts):
        scores_NTS = _scores(q[rows], k_SNH, options["scale"])
        log_z[:, rows] = scores_NTS.logsumexp(-1)
        weights_NTS = (scores_NTS - scores_NTS.amax(-1, keepdim=True)).exp()
        sums_NTH = torch.einsum("nts,snh->nth", weights_NTS.to(q.dtype).float(), v_SNH.float())
        out[rows] = (sums_NTH / weights_NTS.sum(-1, keepdim=True)).transpose(0, 1).to(q.dtype)
    state = torch.zeros(2, dtype=torch.uint64)
    return out, log_z, state, state.clone(), q.new_empty(0)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_z: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    *rest: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.zeros(x.shape) for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    for rows, keys, k_SNH, v_SNH in _parts(q, k, v, q_starts, k_starts):
        p_NTS = (_scores(q[rows], k_SNH, options["scale"]) - log_z[:, rows, None]).exp()
        grad_TNH = grad[rows].float()
        down_NTS = torch.einsum("tnh,snh->nts", grad_TNH, v_SNH.float())
        mean_NT1 = (grad_TNH * out[rows].float()).sum(-1).T[..., None]
        slope_NTS = (p_NTS * (down_NTS - mean_NT1)).to(q.dtype).float() * options["scale"]
        grads[0][rows] = torch.einsum("nts,snh->tnh", slope_NTS, k_SNH.float())
        wide = torch.einsum("nts,tnh->snh", slope_NTS, q[rows].float())
        grads[1][keys] = wide.unflatten(1, (-1, repeats)).sum(2)
        wide = torch.einsum("nts,tnh->snh", p_NTS.to(q.dtype).float(), grad_TNH)
        grads[2][keys] = wide.unflatten(1, (-1, repeats)).sum(2)
    return grads[0].to(q.dtype), grads[1].to(q.dtype), grads[2].to(q.dtype)


def _mm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    assert (a.dtype, b.dtype, out_dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    return a.float() @ b.float()


def _addmm_out(
    sums: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor, **options: Any
) -> Tensor:
    assert sums.dtype == torch.float32
    return out.copy_(sums + _mm(a, b, out_dtype))


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Within, the CPU takes the branches that are taken on CUDA."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    library.impl("mm.dtype", _mm, "CPU")
    library.impl("addmm.dtype_out", _addmm_out, "CPU")
    device_types = (attention.KERNEL_DEVICES, products.WIDE_DEVICES)
    calls.clear()
    for types in device_types:
        types.add("cpu")
    try:
        yield
    finally:
        for types in device_types:
            types.remove("cpu")
        library._destroy()
