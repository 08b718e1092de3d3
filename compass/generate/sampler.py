"""Tokens for sequences: their parameters and noise in, ids and log-probabilities on the host out.

Shape legend: R rows that are sampled from, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch
from torch import Tensor

from compass.generate.sampling import sample_tokens, uniforms
from compass.generate.sequence import Sequence
from compass.generate.transfer import to_device


class _Parameters(NamedTuple):
    """What does not change while a sequence lives, for each row."""

    keys_R: Tensor
    temperature_R: Tensor
    top_k_R: Tensor
    top_p_R: Tensor
    truncated: bool
    greedy: bool


class Sampler:
    """Draws the next token of each sequence.

    On CUDA a draw waits for the device once, when ids and log-probabilities come to the host in one
    copy: the scheduler must know which sequences ended. In a decode step it is the only wait there
    is (tests/gpu checks it on one rank); a step in which completions end has one more, for their
    routes, and one that feeds a prompt under expert parallelism one in each exchange of tokens.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sequences: list[Sequence] = []
        self._parameters = self._take([])

    def draw(self, sequences: list[Sequence], logits_RV: Tensor) -> tuple[list[int], list[float]]:
        """One token and its log-probability for each sequence, from its row of logits."""
        if sequences != self._sequences:  # mostly they are those of the last step
            self._sequences, self._parameters = sequences, self._take(sequences)
        rows = self._parameters
        positions_R = to_device([len(s.token_ids) for s in sequences], torch.int64, self.device)
        ids_R, logprobs_R = sample_tokens(
            logits_RV,
            temperature_B=rows.temperature_R,
            top_k_B=rows.top_k_R,
            top_p_B=rows.top_p_R,
            uniforms_B=uniforms(rows.keys_R, positions_R),
            truncated=rows.truncated,
            greedy=rows.greedy,
        )
        # float64 holds every id and every float32 exactly.
        ids, logprobs = torch.stack((ids_R.double(), logprobs_R.double())).cpu()
        return ids.long().tolist(), logprobs.tolist()

    def _take(self, sequences: SequenceOf[Sequence]) -> _Parameters:
        sampling = [s.sampling for s in sequences]
        return _Parameters(
            keys_R=to_device([s.key for s in sequences], torch.int64, self.device),
            temperature_R=to_device([p.temperature for p in sampling], torch.float32, self.device),
            top_k_R=to_device([p.top_k for p in sampling], torch.int64, self.device),
            top_p_R=to_device([p.top_p for p in sampling], torch.float64, self.device),
            truncated=any(p.top_k > 0 or p.top_p < 1 for p in sampling),
            greedy=any(p.temperature == 0 for p in sampling),
        )
