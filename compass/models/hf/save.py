"""Hugging Face model directories out: `config.json`, tokenizer and safetensors.

One parameter at a time is gathered, and its tensors are in the file before the next one is: memory
holds no more than that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.manifest import REMEDY
from compass.models.hf.files import INDEX, WEIGHTS
from compass.models.hf.names import expert_stem, hf_names
from compass.models.hf.stream import TensorFile, TensorPlan
from compass.models.parallel import full_tensor, reshard
from compass.models.policy import Policy
from compass.models.specs import ModelSpec
from compass.text.tokenizer import Tokenizer

DEFAULT_SHARD_BYTES = 5_000_000_000


def save_hf(
    policy: Policy,
    directory: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    topology: Topology | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `policy` as a Hugging Face directory. Collective when there is a `topology`.

    Tensors keep their dtype unless `dtype` is given. Everything is written into a neighbouring
    temporary folder that is then renamed, so `directory` is whole or absent; an earlier export
    at that place is replaced.

    Raises UserError, on all ranks, when `directory` holds something that is not an export, or
    cannot be written (no space, no permission); nothing half-written stays then.
    """
    reshard(policy)  # weights gathered for a forward pass are in the compute dtype
    parameters = dict(policy.named_parameters())
    plan = {
        name: TensorPlan(shape=tuple(parameter.shape), dtype=dtype or parameter.dtype)
        for name, parameter in parameters.items()
    }
    stored = dtype or next(policy.parameters()).dtype
    write_hf(
        Path(directory),
        plan,
        read=lambda name: full_tensor(parameters[name].detach()),
        files=model_files(policy.spec, stored, tokenizer),
        topology=topology,
        max_shard_bytes=max_shard_bytes,
    )


def write_hf(
    directory: Path,
    plan: Mapping[str, TensorPlan],
    *,
    read: Callable[[str], Tensor],
    files: Mapping[str, bytes],
    topology: Topology | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """`save_hf` for parameters from anywhere.

    Args:
        plan: of our parameters, by our names, in the order in which they are written.
        read: the values of a parameter, in any dtype; called on every rank.
        files: what stands beside the weights, by name (`model_files`).

    Raises:
        UserError: as of `save_hf`.
    """
    is_main = topology is None or topology.is_main
    writer = _ModelWriter(directory, plan, max_shard_bytes=max_shard_bytes)
    try:
        with _writing(directory, topology):
            if is_main:
                writer.begin()
        for name in plan:
            full = read(name)
            with _writing(directory, topology):
                if is_main:
                    writer.add(name, full)
            del full
        with _writing(directory, topology):
            if is_main:
                writer.publish(files)
    finally:
        if is_main:
            writer.clean_up()


class _ModelWriter:
    """Writes our parameters as Hugging Face tensors, file after file, and the folder in place when
    it is whole."""

    def __init__(
        self, directory: Path, plan: Mapping[str, TensorPlan], *, max_shard_bytes: int
    ) -> None:
        self._directory = directory
        self._plan = plan
        self.staging = directory.with_name(f".{directory.name}.partial")
        self._shards = _plan_shards(dict(_hf_plans(plan)), max_shard_bytes)
        count = len(self._shards)
        self._paths = [self.staging / _file_name(number, count) for number in range(count)]
        self._places = {name: n for n, shard in enumerate(self._shards) for name in shard}
        self._open: TensorFile | None = None
        self._num_opened = 0

    def begin(self) -> None:
        """Make the folder beside the one that is to be.

        Raises:
            UserError: the place holds something that is not an export.
        """
        check_export(self._directory)
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def add(self, name: str, full: Tensor) -> None:
        """Write a parameter; they come in the order of the plan."""
        names = hf_names(name, full.shape[0])
        parts = [full] if expert_stem(name) is None else full
        for hf_name, part in zip(names, parts, strict=True):
            number = self._places[hf_name]
            if number == self._num_opened:
                self._open = TensorFile(self._paths[number], self._shards[number])
                self._num_opened += 1
            assert self._open is not None, "the first tensor opens the first file"
            self._open.add(hf_name, part.to(device="cpu", dtype=self._plan[name].dtype))

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Write the index and `files`, and rename the folder; an earlier export is replaced."""
        for name, content in files.items():
            (self.staging / name).write_bytes(content)
        if len(self._shards) > 1:
            sizes = [tensor.num_bytes for shard in self._shards for tensor in shard.values()]
            weight_map = {name: self._paths[n].name for name, n in self._places.items()}
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
            (self.staging / INDEX).write_bytes(_json(index))
        _swap_in(self.staging, self._directory)

    def clean_up(self) -> None:
        """Remove what is half written."""
        if self._open is not None:
            with suppress(OSError):  # of a full disk: what is still to be written is given up here
                self._open.close()
        shutil.rmtree(self.staging, ignore_errors=True)


def _file_name(number: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _hf_plans(plan: Mapping[str, TensorPlan]) -> Iterator[tuple[str, TensorPlan]]:
    """Every Hugging Face tensor, in the order they are written."""
    for name, whole in plan.items():
        shape = whole.shape if expert_stem(name) is None else whole.shape[1:]
        for hf_name in hf_names(name, whole.shape[0]):
            yield hf_name, TensorPlan(shape=shape, dtype=whole.dtype)


def _plan_shards(plans: Mapping[str, TensorPlan], max_bytes: int) -> list[dict[str, TensorPlan]]:
    """Fill files in order; a tensor larger than `max_bytes` gets a file of its own."""
    shards: list[dict[str, TensorPlan]] = [{}]
    filled = 0
    for name, plan in plans.items():
        if shards[-1] and filled + plan.num_bytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = plan
        filled += plan.num_bytes
    return shards


def model_files(
    spec: ModelSpec, dtype: torch.dtype, tokenizer: Tokenizer | None
) -> dict[str, bytes]:
    """Everything that makes a folder of weights a model, by name: config.json and the tokenizer's
    files.

    `dtype`: of the weights, for those who read them.
    """
    files: dict[str, bytes] = {}
    special: dict[str, Any] = {}
    if tokenizer is not None:
        files |= tokenizer.files
        special = {
            "eos_token_id": list(tokenizer.stop_token_ids) or None,
            "pad_token_id": tokenizer.pad_token_id,
        }
    # transformers 4 reads `torch_dtype`, and 5 still does.
    config = spec.to_hf() | special | {"torch_dtype": str(dtype).removeprefix("torch.")}
    return {"generation_config.json": _json(special)} | files | {"config.json": _json(config)}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def check_export(directory: Path) -> None:
    """Refuse a place that `save_hf` would refuse, before a run is spent on it.

    Raises:
        UserError: it holds something that is not an export.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another export directory")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "config.json").exists():
        raise UserError(
            f"{directory} is not empty and not an earlier export: choose another directory"
        )


def _swap_in(staging: Path, directory: Path) -> None:
    previous = directory.with_name(f".{directory.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if directory.exists():
        directory.rename(previous)
    staging.rename(directory)
    shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def _writing(directory: Path, topology: Topology | None) -> Iterator[None]:
    """What cannot be written on one rank is a `UserError` on all."""
    with raised_together(topology) if topology else nullcontext():
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {directory}: {reason}; {REMEDY}") from None
