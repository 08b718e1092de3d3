"""Sampling with noise that depends on what is sampled, never on when or beside what.

One uniform number per token: a counter-based hash of the completion's key (seed, prompt id, sample
index) and of the token's position. Sampling inverts the cumulative distribution with it. So a
completion does not depend on batch order, scheduling, number of ranks or restarts.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compass.errors import UserError
from compass.types import SamplingParams

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), its
# unsigned constants as the signed integers of the same bits: int64 tensors wrap like uint64.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

LOGITS_PER_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 25}
"""Logits sampled from at once. On CPU the intermediate results of so many stay in a core's cache,
which makes sampling from [128, 4096] some eight times faster; on CUDA it bounds their memory."""


TEMPERATURES = (1e-6, 1e6)
"""Least and greatest that logits are divided by. Ours: far from both ends of float32, and beyond
either nothing changes any more."""


def uniforms(keys_B: Tensor, positions_B: Tensor) -> Tensor:
    """[B] float64 uniform in [0, 1) with 53 random bits, the same on CPU and CUDA.

    Args:
        keys_B: int64, `SampleKey` of each completion.
        positions_B: int64, position in the sequence of the token to draw.
    """
    z_B = keys_B + (positions_B + 1) * _GAMMA
    z_B = (z_B ^ _shift_right(z_B, 30)) * _MIX_1
    z_B = (z_B ^ _shift_right(z_B, 27)) * _MIX_2
    z_B = z_B ^ _shift_right(z_B, 31)
    return _shift_right(z_B, 11).double() * 2.0**-53


def sample_tokens(
    logits_BV: Tensor,
    *,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    uniforms_B: Tensor,
    truncated: bool,
    greedy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw one token per row. Nothing in here waits for the device.

    A row with a logit of NaN or infinity gets a token all the same, with the log-probability NaN,
    which no other row can have: whoever reads it knows, and nothing is indexed out of its range.

    Args:
        logits_BV: raw logits.
        temperature_B: float32; 0 takes the most likely token.
        top_k_B: int64; keep the k most likely tokens, 0 keeps all.
        top_p_B: float64; of those, keep the fewest that reach this probability.
        uniforms_B: float64 in [0, 1).
        truncated: False promises that no row uses top-k or top-p, and saves a sort.
        greedy: False promises that no temperature is 0, and saves a search.

    Returns:
        ids_B int64, logprobs_B float32: the log-probability, in nats, under the distribution that
        was sampled from; for a greedy row, under the softmax at temperature 1.
    """
    B, V = logits_BV.shape
    rows = max(1, LOGITS_PER_CHUNK[logits_BV.device.type] // V)
    chunks = [
        _sample_chunk(
            logits_BV[first : first + rows],
            temperature_B[first : first + rows],
            top_k_B[first : first + rows],
            top_p_B[first : first + rows],
            uniforms_B[first : first + rows],
            truncated=truncated,
            greedy=greedy,
        )
        for first in range(0, max(B, 1), rows)
    ]
    if len(chunks) == 1:
        return chunks[0]
    return torch.cat([ids for ids, _ in chunks]), torch.cat([logprobs for _, logprobs in chunks])


def _sample_chunk(
    logits_BV: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    uniforms_B: Tensor,
    *,
    truncated: bool,
    greedy: bool,
) -> tuple[Tensor, Tensor]:
    greedy_B1 = (temperature_B == 0)[:, None]
    scaled_BV = logits_BV.float() / torch.where(greedy_B1, 1.0, temperature_B[:, None])
    if truncated:
        keep_BV = _kept_tokens(scaled_BV, top_k_B, top_p_B) | greedy_B1
        scaled_BV = scaled_BV.masked_fill(~keep_BV, -torch.inf)
    probs_BV = torch.softmax(scaled_BV, dim=-1)
    ids_B1 = _invert_cdf(probs_BV, uniforms_B)
    if greedy:
        ids_B1 = torch.where(greedy_B1, scaled_BV.argmax(dim=-1, keepdim=True), ids_B1)
    return ids_B1[:, 0], probs_BV.gather(1, ids_B1)[:, 0].log()


def check_sampling(params: SamplingParams) -> None:
    """Raises UserError naming the first value that makes no sense."""
    if params.max_completion_tokens < 1:
        raise UserError(f"max_completion_tokens={params.max_completion_tokens} must be at least 1")
    low, high = TEMPERATURES
    if params.temperature != 0 and not low <= params.temperature <= high:
        raise UserError(
            f"temperature={params.temperature} must be 0 (greedy) or from {low:g} to {high:g}: "
            "float32 does not hold logits divided by it"
        )
    if not 0 < params.top_p <= 1:
        raise UserError(f"top_p={params.top_p} must be above 0 and at most 1 (1 keeps all tokens)")
    if params.top_k < 0:
        raise UserError(f"top_k={params.top_k} must be 0 (keep all tokens) or more")


def _shift_right(z_B: Tensor, bits: int) -> Tensor:
    """Shift in zeros, as for an unsigned integer."""
    return (z_B >> bits) & ((1 << (64 - bits)) - 1)


def _invert_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """[B, 1]: the first token whose cumulative probability exceeds the uniform number."""
    V = probs_BV.shape[1]
    cdf_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cdf_BV[:, -1]
    # A uniform is at most 1 - 2**-53, so the product rounds below the total: a token is always
    # found, and its probability is not zero since the sum rises there.
    target_B = uniforms_B * total_B
    # Among probabilities that are NaN none is found, which would be an index beyond the last.
    return torch.searchsorted(cdf_BV, target_B[:, None], right=True).clamp_(max=V - 1)


def _kept_tokens(scaled_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """[B, V] bool. Top-p is taken of what top-k left, renormalised; ties go to the lower id."""
    V = scaled_BV.shape[1]
    ordered_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(V, device=scaled_BV.device)
    k_B = torch.where(top_k_B == 0, V, top_k_B)
    in_k_BV = rank_V < k_B[:, None]
    probs_BV = ordered_BV.masked_fill(~in_k_BV, -torch.inf).double().softmax(dim=-1)
    before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    in_p_BV = before_BV < top_p_B[:, None]
    return torch.zeros_like(in_k_BV).scatter(1, order_BV, in_k_BV & in_p_BV)
