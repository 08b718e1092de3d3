"""Opening a policy by what the user calls it: a Hugging Face directory, or the name of a spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compass.cli import note
from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.models.config import PolicyConfig
from compass.models.hf.files import stray_weights
from compass.models.hf.weights import load_hf, read_spec
from compass.models.parallel import build_policy, init_policy
from compass.models.policy import Policy
from compass.models.specs import SPECS, ModelSpec
from compass.text.tokenizer import Tokenizer, check_vocab

_MOST_PADDING = 1024
"""Published models round their vocabulary up by at most this many tokens."""
_VOCAB_MULTIPLE = 64
"""A model made for a tokenizer gets its vocabulary rounded up to a multiple of this."""


def open_policy(
    model: str, tokenizer: Tokenizer, topology: Topology, cfg: PolicyConfig, *, seed: int
) -> Policy:
    """The policy called `model`, sharded over the topology. Collective.

    A directory is read as a Hugging Face checkpoint. A spec's name gives random weights drawn from
    `seed`, with the vocabulary fitted to the tokenizer.

    What is odd about the directory but no mistake is noted on stderr.

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
        with raised_together(topology):
            load_hf(policy, model)

    return build_policy(spec, topology, cfg, fill)


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


def _named_spec(name: str) -> ModelSpec:
    if name not in SPECS:
        raise UserError(
            f"model {name!r} is neither a directory nor one of {', '.join(SPECS)}; "
            "give a Hugging Face directory or one of these names"
        )
    return SPECS[name]


def _fitted(spec: ModelSpec, tokenizer: Tokenizer) -> ModelSpec:
    rounded = -(-tokenizer.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    return replace(spec, vocab_size=rounded)
