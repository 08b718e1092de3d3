"""Opening a policy by what the user calls it: a Hugging Face directory, a checkpoint, the folder of
a run, or the name of a spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from compass.checkpoint.folder import (
    FOLDER,
    damage_anywhere,
    find_checkpoint,
    is_checkpoint,
)
from compass.checkpoint.tensors import read_weights
from compass.cli import note
from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.manifest import read_manifest
from compass.models.config import PolicyConfig
from compass.models.hf.files import stray_weights
from compass.models.hf.weights import load_hf, read_dtype, read_spec
from compass.models.parallel import build_policy, init_policy
from compass.models.policy import Policy
from compass.models.specs import SPECS, ModelSpec
from compass.text.tokenizer import Tokenizer, check_is_here, check_vocab

_MOST_PADDING = 1024
"""Published models round their vocabulary up by at most this many tokens."""
_VOCAB_MULTIPLE = 64
"""A model made for a tokenizer gets its vocabulary rounded up to a multiple of this."""


def find_model(model: str, topology: Topology) -> str:
    """`model`, or the newest checkpoint of the run whose folder it is. Collective: the run may be
    saving another one.

    Raises:
        UserError: a run that has saved no checkpoint.
    """
    with raised_together(topology):
        found = _newest_of_run(model) if topology.is_main else model
    return topology.all_gather_object(found)[0]


def _newest_of_run(model: str) -> str:
    directory = Path(model)
    is_run = (directory / FOLDER).is_dir() and not (directory / "config.json").exists()
    return str(find_checkpoint(directory)) if is_run else model


def open_policy(
    model: str, tokenizer: Tokenizer, topology: Topology, cfg: PolicyConfig, *, seed: int
) -> Policy:
    """The policy called `model`, sharded over the topology. Collective.

    A directory is a checkpoint of a run, of which only the weights are taken, or a Hugging Face
    one. A spec's name gives random weights drawn from `seed`, with the vocabulary fitted to the
    tokenizer.

    From which step a checkpoint is, is said on stdout; what is odd about the directory but no
    mistake is noted on stderr.

    Raises:
        UserError: on every rank: neither of the two, or a checkpoint that cannot be loaded.
    """
    if not Path(model).is_dir():
        spec = _fitted(_named_spec(model), tokenizer)
        return build_policy(spec, topology, cfg, lambda policy: init_policy(policy, seed))
    with raised_together(topology):
        spec = read_spec(model)
        check_vocab(tokenizer, spec.vocab_size)
        if topology.is_main:
            _note_oddities(Path(model), spec, tokenizer)

    def fill(policy: Policy) -> None:
        if is_checkpoint(Path(model)):
            _fill_from_checkpoint(policy, Path(model), topology)
            return
        with raised_together(topology):
            load_hf(policy, model)

    return build_policy(spec, topology, cfg, fill)


def _fill_from_checkpoint(policy: Policy, path: Path, topology: Topology) -> None:
    damage = damage_anywhere(path, topology)
    if damage is not None:
        raise UserError(f"{damage}; give another checkpoint")
    read_weights(path, policy)
    if topology.is_main:
        step = read_manifest(path).step
        print(f"starts from the weights at step {step} of {path}", flush=True)


def _note_oddities(directory: Path, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    stray = stray_weights(directory)
    if stray is not None:
        note(stray)
    num_surplus = spec.vocab_size - tokenizer.vocab_size
    if num_surplus > _MOST_PADDING:
        note(
            f"the vocabulary of {directory} has {spec.vocab_size} tokens, {num_surplus} more than "
            "its tokenizer has ids: a completion may hold tokens that are no text; check that the "
            "tokenizer belongs to this model"
        )


def spec_of(model: str) -> ModelSpec:
    """The sizes of what `open_policy` would open, before a vocabulary is fitted.

    Raises:
        UserError: neither a directory with a `config.json` nor the name of a spec.
    """
    return read_spec(model) if Path(model).is_dir() else _named_spec(model)


def dtype_of(model: str) -> torch.dtype | None:
    """What the weights called `model` came in, by its `config.json`; None where nothing says so."""
    return read_dtype(model) if Path(model).is_dir() else None


def _named_spec(name: str) -> ModelSpec:
    check_is_here(name)
    if name not in SPECS:
        raise UserError(
            f"model {name!r} is neither a directory nor one of {', '.join(SPECS)}; "
            "give a Hugging Face directory or one of these names"
        )
    return SPECS[name]


def _fitted(spec: ModelSpec, tokenizer: Tokenizer) -> ModelSpec:
    rounded = -(-tokenizer.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    return replace(spec, vocab_size=rounded)
