"""Where does Router Replay matter? Roundings of a GPU's trainer, emulated on CPU.

A model with random weights writes completions; the trainer scores them with the same weights but
rounds where a GPU's kernels would: attention takes bfloat16 operands (as FlashAttention does), or
the router's logits are rounded to bfloat16. Each is done with replay off and on (r3); the table
shows what replay takes off the k3 estimate of KL(generator || trainer).

Random routers are undecided: they flip far more often than trained ones. The figures say in which
direction each setting pulls, and not how far it would pull a trained model.

    python tools/replay_settings.py
    python tools/replay_settings.py --top_k 8 2 1 --num_layers 12 --num_experts 64
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from compass.cli import exit_on_user_error
from compass.config import parse
from compass.distributed import ParallelConfig, Topology, init_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.means import Means
from compass.models.config import PolicyConfig
from compass.models.context import AttentionBackend, ForwardContext, RoutingTrace
from compass.models.layers.attention import PackedAttention, causal_sdpa
from compass.models.parallel import build_policy, init_policy, reshard
from compass.models.policy import Policy
from compass.models.specs import SPECS
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Trained, pack_microbatch
from compass.rl.rollout import make_tokens
from compass.train.trainer import add_flips
from compass.types import Microbatch, SamplingParams, TokenScores

Rounding = Literal["nothing", "attention", "router logits"]
ROUNDINGS: tuple[Rounding, ...] = ("nothing", "attention", "router logits")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/replay_settings.py`."""

    top_k: tuple[int, ...] = (8, 2, 1)
    """Experts per token; a row of the table for each."""
    num_experts: int = 64
    """Experts per layer."""
    num_layers: int = 12
    """Layers, all of them with experts."""
    num_completions: int = 32
    """Completions that are scored."""
    completion_tokens: int = 48
    """Tokens of each."""
    seed: int = 0
    """Of weights and sampling noise."""

    def __post_init__(self) -> None:
        if not self.top_k:
            raise UserError("--top_k names no number of experts per token; give at least one")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What replay does in one setting."""

    top_k: int
    rounding: Rounding
    flip_rate: float
    """Share of recorded choices that the rounded router would not make."""
    k3_off: float
    k3_replayed: float

    @property
    def gain(self) -> float:
        """How many times smaller replay makes the k3 KL."""
        return self.k3_off / self.k3_replayed


class RoundedAttention:
    """Causal attention in bfloat16 throughout, sequence by sequence (`AttentionBackend`)."""

    def __init__(self, sequence_lengths: tuple[int, ...]) -> None:
        self.sequence_lengths = sequence_lengths

    def attend(
        self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, scale: float
    ) -> Tensor:
        """See `AttentionBackend`."""
        of_sequences = (x.bfloat16().split(self.sequence_lengths) for x in (q_TNH, k_TGH, v_TGH))
        out = [
            causal_sdpa(_batch(q), _batch(k), _batch(v), scale)[0].transpose(0, 1)
            for q, k, v in zip(*of_sequences, strict=True)
        ]
        return torch.cat(out).to(q_TNH.dtype)


def _batch(x_SNH: Tensor) -> Tensor:
    return x_SNH.transpose(0, 1)[None]


def main(cfg: Config) -> None:
    """Measure and print."""
    topology = init_topology(ParallelConfig(device="cpu"))
    effects = [effect for top_k in cfg.top_k for effect in measure(cfg, top_k, topology)]
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table(cfg, effects))


def measure(cfg: Config, top_k: int, topology: Topology) -> list[Effect]:
    """One model, rolled out once and scored with each rounding."""
    spec = replace(
        SPECS["debug"], num_layers=cfg.num_layers, num_experts=cfg.num_experts, top_k=top_k
    )
    policy = build_policy(
        spec, topology, PolicyConfig(dtype="bfloat16"), lambda p: init_policy(p, cfg.seed)
    )
    recorded = roll_out(cfg, policy, topology)
    return [compare(policy, recorded, rounding, topology) for rounding in ROUNDINGS]


def roll_out(cfg: Config, policy: Policy, topology: Topology) -> Microbatch:
    """Completions of one prompt, with their routes."""
    generator = Generator(policy, GeneratorConfig(num_blocks=8 * cfg.num_completions), topology)
    request = Request(
        prompt_id="prompt",
        prompt_token_ids=list(range(1, 17)),
        num_samples=cfg.num_completions,
        sampling=SamplingParams(max_completion_tokens=cfg.completion_tokens),
    )
    tokens = [make_tokens(c) for c in generator.generate([request], seed=cfg.seed)]
    reshard(policy)
    items = [Trained(tokens=t, advantage=1.0) for t in tokens]
    return pack_microbatch(items, policy.spec, replay=True)


@torch.no_grad()
def compare(policy: Policy, recorded: Microbatch, rounding: Rounding, topology: Topology) -> Effect:
    """Score with the trainer rounding, with replay off and on."""
    lengths = recorded.sequence_lengths
    attention: AttentionBackend = (
        RoundedAttention(lengths) if rounding == "attention" else PackedAttention(lengths, "cpu")
    )
    routers = [block.moe.router for block in policy.blocks if block.moe is not None]
    if rounding == "router logits":
        for router in routers:
            router.logits = _rounded(router.logits)
    k3: dict[bool, float] = {}
    for replayed in (False, True):
        scores, trace = score(policy, recorded, attention, replayed=replayed)
        mismatch = mismatch_metrics([scores.logprobs], [recorded.rollout_logprobs], topology)
        k3[replayed] = mismatch["mismatch/k3_kl"]
        if not replayed:
            flips = Means()
            assert recorded.routed_experts is not None
            add_flips(flips, recorded.routed_experts, trace.live_TLK)
    for router in routers:
        router.__dict__.pop("logits", None)
    return Effect(
        top_k=policy.spec.top_k,
        rounding=rounding,
        flip_rate=flips.reduce(topology)["router/flip_rate"],
        k3_off=k3[False],
        k3_replayed=k3[True],
    )


def _rounded(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x_TD: logits(x_TD).bfloat16().float()


def score(
    policy: Policy, recorded: Microbatch, attention: AttentionBackend, *, replayed: bool
) -> tuple[TokenScores, RoutingTrace]:
    """The trainer's forward pass, over an attention of one's choice."""
    trace = RoutingTrace.empty(
        len(recorded.token_ids),
        policy.spec.num_moe_layers,
        policy.spec.top_k,
        forced_TLK=recorded.routed_experts if replayed else None,
    )
    scores = policy(
        recorded.token_ids,
        recorded.positions,
        ForwardContext(attention=attention, routing=trace),
        recorded.rows,
        recorded.targets,
    )
    return scores, trace


def table(cfg: Config, effects: Sequence[Effect]) -> Table:
    """A row for each setting."""
    made = Table(
        title=f"{cfg.num_layers} layers, {cfg.num_experts} experts, random weights, bfloat16; what "
        "the trainer rounds differently from the generator"
    )
    for column in ("top-k", "rounded", "flipped choices", "k3, replay off", "k3, r3", "off / r3"):
        made.add_column(column, justify="right")
    for e in effects:
        made.add_row(
            *(str(e.top_k), e.rounding, f"{e.flip_rate:.2%}", f"{e.k3_off:.1e}"),
            *(f"{e.k3_replayed:.1e}", f"{e.gain:.1f}"),
        )
    return made


if __name__ == "__main__":
    exit_on_user_error(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
