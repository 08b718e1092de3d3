"""A step's rollouts as a table of `compass.rollouts.schema`, without a Python object per token.

Shape legend: N tokens of one rollout, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass.rollouts.record import Judged, StepRecord, Trained
from compass.rollouts.schema import METADATA_KEY, SCHEMA, VERSION
from compass.text.tokenizer import Tokenizer
from compass.types import RolloutTokens


class TableMaker:
    """Makes tables; remembers the bytes of every token it has met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {}

    def table(self, record: StepRecord, *, writer_seconds: float) -> pa.Table:
        """One row per rollout, by group and sample.

        Args:
            writer_seconds: CPU time that the files before this one took; goes into the metadata.
        """
        rows = sorted(record.judged, key=lambda judged: (judged.group, judged.rollout.sample))
        tokens = [record.tokens[j.rollout.slot] for j in rows]
        ids = [t.token_ids.numpy().astype(np.int32) for t in tokens]
        ends = [j.rollout.num_prompt_tokens for j in rows]
        prompt_ids = [of_one[:end] for of_one, end in zip(ids, ends, strict=True)]
        written_ids = [of_one[end:] for of_one, end in zip(ids, ends, strict=True)]
        logprobs = [t.rollout_logprobs.numpy()[end:] for t, end in zip(tokens, ends, strict=True)]
        trained = [record.trained.get(j.rollout.slot) for j in rows]
        columns: dict[str, Any] = {
            "step": [record.step] * len(rows),
            "writer": [record.rank] * len(rows),
            "prompt": self._prompts([j.group for j in rows], prompt_ids),
            "prompt_ids": _lists(prompt_ids, pa.int32()),
            "completion": [self._tokenizer.decode(of_one.tolist()) for of_one in written_ids],
            "completion_ids": _lists(written_ids, pa.int32()),
            "pieces": self._piece_lists(written_ids),
            "turns": [None] * len(rows),
            "rollout_logprobs": _lists(logprobs, pa.float32()),
            "minibatch": [t and t.minibatch for t in trained],
        }
        columns |= _told_columns(rows)
        columns |= _trainer_columns(trained)
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, SCHEMA.field(name).type)
            for name in SCHEMA.names
            for column in [columns[name]]
        ]
        metadata = {METADATA_KEY: json.dumps(_of_step(record, writer_seconds)).encode()}
        return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata))

    def _prompts(self, groups: Sequence[int], prompt_ids: Sequence[NDArray]) -> list[str]:
        """Text of each rollout's prompt, decoded once for a group."""
        texts: dict[int, str] = {}
        for group, of_one in zip(groups, prompt_ids, strict=True):
            if group not in texts:
                texts[group] = self._tokenizer.decode(of_one.tolist())
        return [texts[group] for group in groups]

    def _piece_lists(self, written_ids: Sequence[NDArray]) -> pa.Array:
        flat = np.concatenate([np.zeros(0, np.int32), *written_ids])
        distinct, indices = np.unique(flat, return_inverse=True)
        for token_id in distinct.tolist():
            if token_id not in self._pieces:
                self._pieces[token_id] = self._tokenizer.piece(token_id)
        pieces = pa.array([self._pieces[i] for i in distinct.tolist()], pa.binary())
        values = pa.DictionaryArray.from_arrays(indices.astype(np.int32), pieces)
        return pa.ListArray.from_arrays(_offsets(written_ids), values)


def clean(text: str | None) -> str | None:
    """Text that can be UTF-8: a lone surrogate, which JSON may hold, is a question mark."""
    return None if text is None else text.encode(errors="replace").decode()


def expert_load(rollouts: Iterable[RolloutTokens], *, num_layers: int, num_experts: int) -> NDArray:
    """How many tokens each expert was chosen for, by the recorded routes. [L, E] int64."""
    load_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
    for tokens in rollouts:
        routes_NLK = tokens.routed_experts.numpy()
        for layer in range(num_layers):
            load_LE[layer] += np.bincount(routes_NLK[:, layer].reshape(-1), minlength=num_experts)
    return load_LE


def _told_columns(rows: Sequence[Judged]) -> dict[str, list[Any]]:
    """What the groups' homes told."""
    scores = [j.rollout.score for j in rows]
    return {
        "group": [j.group for j in rows],
        "sample": [j.rollout.sample for j in rows],
        "prompt_id": [clean(j.rollout.prompt_id) for j in rows],
        "domain": [clean(j.domain) for j in rows],
        "expected": [clean(j.answer) for j in rows],
        "finish_reason": [j.rollout.finish_reason for j in rows],
        "policy_version": [j.rollout.policy_version for j in rows],
        "repetition": [j.rollout.repetition for j in rows],
        "valid": [score.valid for score in scores],
        "verdict": [score.verdict if score.valid else None for score in scores],
        "reward": [score.reward if score.valid else None for score in scores],
        "shaped_reward": [j.shaped_reward for j in rows],
        "reason": [clean(score.reason) for score in scores],
        "breakdown": [[(clean(k), v) for k, v in s.breakdown.items()] for s in scores],
        "answer": [clean(score.answer) for score in scores],
        "verifier_seconds": [score.seconds for score in scores],
        "saved_by": [j.saved_by for j in rows],
        "added": [j.added for j in rows],
        "advantage": [j.advantage for j in rows],
    }


def _trainer_columns(trained: Sequence[Trained | None]) -> dict[str, pa.Array]:
    """Null where a rollout was not trained; `flips` also where nothing was replayed."""

    def column(of: Callable[[Trained], NDArray | None], kind: pa.DataType) -> pa.Array:
        return _lists([None if t is None else of(t) for t in trained], kind)

    return {
        "trainer_logprobs": column(lambda t: t.logprobs, pa.float32()),
        "entropies": column(lambda t: t.entropies, pa.float32()),
        "advantages": column(lambda t: t.advantages, pa.float32()),
        "flips": column(lambda t: t.flips, pa.int16()),
    }


def _lists(values: Sequence[NDArray | None], kind: pa.DataType) -> pa.Array:
    """One list per array; null for None."""
    there = [v for v in values if v is not None]
    empty = np.zeros(0, kind.to_pandas_dtype())
    flat = pa.array(np.concatenate([empty, *there]), kind)
    mask = pa.array([v is None for v in values], pa.bool_())
    return pa.ListArray.from_arrays(_offsets(values), flat, mask=mask)


def _offsets(values: Iterable[NDArray | None]) -> pa.Array:
    sizes = [0, *(0 if v is None else len(v) for v in values)]
    return pa.array(np.cumsum(sizes), pa.int32())


def _of_step(record: StepRecord, writer_seconds: float) -> dict[str, Any]:
    num_layers = record.tokens[0].routed_experts.shape[1] if record.tokens else 0
    load_LE = expert_load(record.tokens, num_layers=num_layers, num_experts=record.num_experts)
    return {
        "version": VERSION,
        "step": record.step,
        "rank": record.rank,
        "world_size": record.world_size,
        "spans": [list(span) for span in record.spans],
        "expert_load": load_LE.tolist(),
        "cpu_seconds": record.cpu_seconds,
        "writer_seconds": writer_seconds,
    }
