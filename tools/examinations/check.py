"""Check this machine, and check that generator and trainer agree on a checkpoint.

Prints the environment, then a parity self-test: with nothing trained in between, roll out, score
the same tokens with the trainer, and show how far apart the two are with Router Replay off and
on (r3), in float32 and bfloat16, each beside the level that is fine. Then the same for generators
that round to FP8, and what `correction.mode tis` would do about it.

    python tools/doctor.py                                        (the debug model, random weights)
    python tools/doctor.py --model runs/demo/rl/model --prompts runs/demo/data/eval.jsonl
    torchrun --nproc-per-node 2 tools/doctor.py --model DIR --prompts FILE --parallel.ep 2

Exit code 1 when something is above its level.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compass.distributed import ParallelConfig, Topology, init_topology
from compass.generate.config import Fp8Config, GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.gym.byte_tokenizer import write_byte_tokenizer
from compass.gym.datasets import load_prompts
from compass.gym.domains.chain_data import ChainDataConfig, eval_prompts
from compass.machine.versions import installed_versions
from compass.means import Means
from compass.models.config import PolicyConfig
from compass.models.load import find_model, open_policy, spec_of
from compass.models.parallel import reshard
from compass.models.policy import Policy
from compass.rl.encoded_prompts import EncodedPrompts
from compass.rl.memory.plan import require_scoring_memory
from compass.rl.memory.workload import LONGEST_PROMPT, RolloutWork, Workload
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Trained, filler_microbatch, pack_microbatch
from compass.rl.rollout import make_tokens
from compass.rl.sampler import rank_share
from compass.text.tokenizer import Tokenizer
from compass.train.correction import CorrectionConfig, correction_weights
from compass.train.optim_config import OptimConfig
from compass.train.trainer import add_flips, run_policy
from compass.types import Prompt, RolloutTokens, SamplingParams

PACKAGES = (
    *("torch", "torchtitan", "torchao", "torchtune", "safetensors", "tokenizers", "tensorboard"),
    *("sympy", "reasoning-gym", "tyro", "triton", "flash-attn", "transformers"),
)
"""Reported with their versions; the last three are optional."""

GENERATORS: dict[str, dict[str, Any]] = {
    "direct": {"weights": "direct", "kv_dtype": "auto"},
    "fp8 weights": {"weights": "fp8", "fp8": Fp8Config(quantise_activations=False)},
    "fp8": {"weights": "fp8"},
    "fp8, kv fp8": {"weights": "fp8", "kv_dtype": "fp8"},
}
"""Fields of `GeneratorConfig` that make each generator; `fp8` rounds activations too."""

FINE: dict[tuple[str, str, str], tuple[float, float]] = {
    ("direct", "float32", "off"): (1e-4, 1e-6),
    ("direct", "float32", "r3"): (1e-4, 1e-6),
    ("direct", "bfloat16", "off"): (5e-2, 5e-3),
    ("direct", "bfloat16", "r3"): (2e-2, 1e-3),
}
FINE |= {
    (name, "float32", replay): (1e-1, 1e-2)
    for name in GENERATORS
    if name != "direct"
    for replay in ("off", "r3")
}
"""By generator, dtype and replay: mean |log-probability difference| in nats, and k3 estimate of
KL(generator || trainer), that need no attention. Float32 differs by summation order alone; bfloat16
carries three digits, and a flipped expert shows as a much larger gap; E4M3 carries one digit, and
random weights feel it most. Published for 30B-A3B in bfloat16: k3 of 1.5e-3 without and 7.5e-4
with replay (arXiv 2510.11370)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/doctor.py check`."""

    model: str = "debug"
    """Hugging Face directory, a checkpoint, the folder of a run (its newest one), or the name of a
    spec for random weights."""
    prompts: Path | None = None
    """Prompt file (JSONL); by default sums made up on the spot."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; by default the model's, or the demo's for a spec."""
    num_prompts: int = 32
    """Prompts to roll out, over all ranks."""
    group_size: int = 4
    """Completions of each."""
    max_completion_tokens: int = 128
    """Longest completion."""
    seed: int = 0
    """Of random weights and sampling noise."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Generator against trainer in one setting."""

    generator: str
    dtype: str
    replay: str
    gap_mean: float
    gap_max: float
    k3_kl: float
    ess: float
    """Effective sample size, as a share of the tokens."""
    tis_weight: float
    """Mean weight under `correction.mode tis`."""
    tis_clipped: float
    """Share of tokens whose weight it cuts."""
    flip_rate: float | None
    """Share of recorded expert choices that the trainer's router would not make; None: dense."""
    token_flip_rate: float | None
    """Share of tokens with such a choice in any layer."""

    @property
    def is_fine(self) -> bool:
        """Within the levels of `FINE`."""
        gap, k3 = FINE[self.generator, self.dtype, self.replay]
        return self.gap_mean <= gap and self.k3_kl <= k3


def main(cfg: Config) -> None:
    """Report and self-test."""
    topology = init_topology(cfg.parallel)
    cfg = replace(cfg, model=find_model(cfg.model, topology))
    require_scoring_memory(workload(cfg, topology.world_size), topology)
    console = Console(highlight=False, quiet=not topology.is_main)
    console.width = max(console.width, 150)  # a pipe says 80, which would cut every figure
    console.print(environment_table(topology))
    with tempfile.TemporaryDirectory() as made:
        tokenizer = Tokenizer.from_dir(_tokenizer_dir(cfg, Path(made)))
    prompts = (
        eval_prompts(ChainDataConfig(), cfg.seed)
        if cfg.prompts is None
        else load_prompts(cfg.prompts)
    )[: cfg.num_prompts]
    exact = [
        parity
        for dtype in ("float32", "bfloat16")
        for parity in measure(cfg, dtype, ["direct"], tokenizer, prompts, topology)
    ]
    console.print(parity_table(f"generator against trainer on {cfg.model}, no update", exact))
    rounded = measure(
        cfg,
        "float32",
        [name for name in GENERATORS if name != "direct"],
        tokenizer,
        prompts,
        topology,
    )
    console.print(parity_table(f"FP8 generators against the trainer on {cfg.model}", rounded))
    results = [*exact, *rounded]
    if not all(parity.is_fine for parity in results):
        console.print("some levels are too high: trainer and generator disagree")
        raise SystemExit(1)


def workload(cfg: Config, world_size: int) -> Workload:
    """The check in float32, whose weights take most."""
    spec = spec_of(cfg.model)
    longest = min(cfg.max_completion_tokens + LONGEST_PROMPT, spec.max_seq_len)
    return Workload(
        spec=spec,
        world_size=world_size,
        ep=cfg.parallel.ep,
        dp_replicate=cfg.parallel.dp_replicate,
        policy=PolicyConfig(),
        optim=OptimConfig(),
        device="cuda",
        longest_sequence=longest - 1,
        length_field="max_completion_tokens",
        # All that a rank writes is scored at once.
        max_tokens_per_microbatch=-(-cfg.num_prompts // world_size) * cfg.group_size * longest,
        microbatch_field="num_prompts",
        scores_first=True,
        rollout=RolloutWork(
            generator=cfg.generator,
            longest_prompt=LONGEST_PROMPT,
            max_completion_tokens=cfg.max_completion_tokens,
        ),
    )


def _tokenizer_dir(cfg: Config, made: Path) -> Path:
    if cfg.tokenizer is not None:
        return cfg.tokenizer
    if Path(cfg.model).is_dir():
        return Path(cfg.model)
    write_byte_tokenizer(made)
    return made


def environment_table(topology: Topology) -> Table:
    """Versions and devices."""
    table = Table(title="environment", show_header=False)
    for package, version in installed_versions(*PACKAGES).items():
        table.add_row(package, version)
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table.add_row("CUDA device", cuda)
    table.add_row("cores, threads of torch", f"{os.cpu_count()}, {torch.get_num_threads()}")
    table.add_row("ranks, EP", f"{topology.world_size}, {topology.ep}")
    return table


def measure(
    cfg: Config,
    dtype: str,
    generators: Sequence[str],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    topology: Topology,
) -> list[Parity]:
    """Roll out once with each generator in `dtype`, then score with replay off and r3.
    Collective."""
    gc.collect()  # the last policy: FSDP's hooks refer to each other, and hold it
    policy_cfg = PolicyConfig(dtype=dtype)  # type: ignore[arg-type]
    policy = open_policy(cfg.model, tokenizer, topology, policy_cfg, seed=cfg.seed)
    sampling = SamplingParams(
        max_completion_tokens=cfg.max_completion_tokens, stop_token_ids=tokenizer.stop_token_ids
    )
    encoded = EncodedPrompts(tokenizer)
    encoded.add(prompts)
    requests = [
        Request(
            prompt_id=prompt.id,
            prompt_token_ids=encoded.of(prompt),
            num_samples=cfg.group_size,
            sampling=sampling,
        )
        for prompt in rank_share(prompts, topology.rank, topology.world_size)
    ]
    modes = ("off", "r3") if policy.spec.num_experts else ("off",)
    results = []
    for name in generators:
        generator = Generator(policy, replace(cfg.generator, **GENERATORS[name]), topology)
        rollouts = [make_tokens(c) for c in generator.generate(requests, seed=cfg.seed)]
        generator.require_finite()
        reshard(policy)
        for mode in modes:
            results.append(compare(policy, name, dtype, mode, rollouts, topology))
    return results


@torch.no_grad()
def compare(
    policy: Policy,
    generator: str,
    dtype: str,
    replay: str,
    rollouts: Sequence[RolloutTokens],
    topology: Topology,
) -> Parity:
    """Score rollouts with the trainer's forward pass and set them against the generator."""
    means = Means()
    if rollouts:
        items = [Trained(tokens=tokens, advantage=1.0) for tokens in rollouts]
        recorded = pack_microbatch(items, policy.spec, replay=True)
        microbatch = recorded if replay == "r3" else replace(recorded, routed_experts=None)
    else:
        recorded = microbatch = filler_microbatch(policy.spec, replay=True)
    scores, trace = run_policy(policy, microbatch, topology.device, temperature=1.0)
    if policy.spec.num_experts and rollouts:
        assert recorded.routed_experts is not None
        add_flips(means, recorded.routed_experts, trace.live_TLK)
    mismatch = mismatch_metrics([scores.logprobs], [microbatch.rollout_logprobs], topology)
    _, corrected = correction_weights(
        scores.logprobs,
        microbatch.rollout_logprobs.to(topology.device),
        microbatch.sequence_ids.to(topology.device),
        microbatch.num_sequences,
        mode="tis",
        cap=CorrectionConfig().cap,
    )
    means.update(corrected)
    logged = means.reduce(topology)
    return Parity(
        generator=generator,
        dtype=dtype,
        replay=replay,
        gap_mean=mismatch["mismatch/logprob_abs_mean"],
        gap_max=mismatch["mismatch/logprob_abs_max"],
        k3_kl=mismatch["mismatch/k3_kl"],
        ess=mismatch["mismatch/ess"],
        tis_weight=logged["correction/mean_weight"],
        tis_clipped=logged["correction/clipped_frac"],
        flip_rate=logged.get("router/flip_rate"),
        token_flip_rate=logged.get("router/token_flip_rate"),
    )


def parity_table(title: str, results: Sequence[Parity]) -> Table:
    """Each measurement beside the level that is fine."""
    table = Table(title=title)
    for column in ("generator", "dtype", "replay", "mean gap", "fine", "max gap", "k3 KL", "fine"):
        table.add_column(column, justify="right")
    for column in ("ESS", "tis mean", "tis cuts", "flip rate", "tokens with a flip", ""):
        table.add_column(column, justify="right")
    for p in results:
        fine_gap, fine_k3 = FINE[p.generator, p.dtype, p.replay]
        table.add_row(
            *(p.generator, p.dtype, p.replay, f"{p.gap_mean:.1e}", f"<= {fine_gap:.0e}"),
            *(f"{p.gap_max:.1e}", f"{p.k3_kl:.1e}", f"<= {fine_k3:.0e}"),
            *(f"{p.ess:.4f}", f"{p.tis_weight:.4f}", _percent(p.tis_clipped)),
            *(_percent(p.flip_rate), _percent(p.token_flip_rate)),
            "ok" if p.is_fine else "HIGH",
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
