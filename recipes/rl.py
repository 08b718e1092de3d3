"""Reinforcement learning: rollouts, verifiers, group advantages, replayed updates.

The policy generates with its own weights (no serving engine), rewards are scored while others
still decode, and the experts chosen in the rollout are replayed in the update (Router Replay).
Left out here: zero-variance stages beyond counting flat groups, and model-judged rewards.

    torchrun --nproc-per-node 2 recipes/rl.py --config configs/rl/debug.toml --model runs/sft/model
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compass.checkpoint import CheckpointConfig, Checkpointer
from compass.config import parse, write_resolved
from compass.distributed import ParallelConfig, Topology, init_topology, launch, raised_together
from compass.errors import UserError
from compass.generate.generator import Generator, GeneratorConfig
from compass.gym.datasets import load_prompts
from compass.gym.pool import PoolConfig, VerifierPool
from compass.means import Means
from compass.metrics import MetricsLogger, Stopwatch
from compass.models.hf import save_hf
from compass.models.load import open_policy
from compass.models.parallel import PolicyConfig
from compass.rl.advantage import AdvantageConfig, group_advantages, verdict_rewards
from compass.rl.mismatch import mismatch_metrics
from compass.rl.pack import Minibatch, PackConfig, pack
from compass.rl.report import batch_metrics, router_metrics, sample_text, throughput_metrics
from compass.rl.rollout import check_prompts, rollout
from compass.rl.sampler import PromptSampler, rank_share
from compass.tokenizer import Tokenizer
from compass.train.correction import CorrectionConfig
from compass.train.loss import Loss
from compass.train.optim import OptimConfig
from compass.train.policy_loss import PolicyLoss, PolicyLossConfig
from compass.train.trainer import Trainer
from compass.types import Microbatch, SamplingParams, TokenScores


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `recipes/rl.py`."""

    model: str
    """Hugging Face directory of the policy, or the name of a spec for random weights."""
    prompts: Path
    """JSONL prompt file: `id`, one of messages/prompt/problem/question, `answer`, `domain`."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; by default the model's."""
    raw: bool = False
    """Feed prompts as they stand, without the chat template."""
    run_dir: Path = Path("runs/rl")
    """Gets config, metrics, checkpoints and, at the end, the model as a Hugging Face directory."""
    resume: bool = False
    """Continue from the newest whole checkpoint of `run_dir`; start fresh when there is none."""
    seed: int = 0
    """Of the prompt order and the sampling noise."""
    num_steps: int = 100
    """Rollout batches to train on."""
    num_prompts_per_step: int = 32
    """Prompts of one rollout batch, over all ranks."""
    group_size: int = 8
    """Completions of each prompt."""
    temperature: float = 1.0
    """Of sampling; the trainer divides logits by it too."""
    max_completion_tokens: int = 1024
    """Longest completion."""
    loss: PolicyLoss = "espo"
    """Which policy loss; its values are in the table of that name in `losses`."""
    replay: Literal["r3", "r2", "off"] = "r3"
    """Expert choices of the update: recorded in the rollout (`r3`), recorded in the trainer's
    old-log-probability pass (`r2`), or chosen anew (`off`)."""
    sample_interval: int = 10
    """Steps between rollouts written out as text."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    gym: PoolConfig = field(default_factory=PoolConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    losses: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "group_size", "sample_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.temperature > 0:
            raise UserError(
                f"temperature={self.temperature} must be above 0: a greedy policy explores nothing"
            )


def main(cfg: Config) -> None:
    """Train, then write the model to `run_dir/model`."""
    topology = init_topology(cfg.parallel)
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    prompts = load_prompts(cfg.prompts, raw=cfg.raw)
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    trainer = Trainer(
        policy,
        topology,
        cfg.optim,
        num_steps=cfg.num_steps * cfg.pack.num_minibatches,
        temperature=cfg.temperature,
        correction=cfg.correction,
    )
    sampler = PromptSampler(prompts, num_prompts_per_step=cfg.num_prompts_per_step, seed=cfg.seed)
    checkpointer = Checkpointer(cfg.run_dir / "checkpoints", topology, cfg.checkpoint)
    start = restore(cfg, checkpointer, trainer, sampler)
    generator = Generator(policy, cfg.generator, topology, policy_version=start)
    sampling = SamplingParams(
        max_completion_tokens=cfg.max_completion_tokens,
        temperature=cfg.temperature,
        stop_token_ids=tokenizer.stop_token_ids,
    )
    check_prompts(generator, tokenizer, prompts, sampling)
    with raised_together(topology):
        if topology.is_main:
            write_resolved(cfg, cfg.run_dir)
    with (
        VerifierPool(
            cfg.gym,
            domains={prompt.domain for prompt in prompts},
            tokenizer_directory=cfg.tokenizer or cfg.model,
            stop_token_ids=tokenizer.stop_token_ids,
        ) as pool,
        MetricsLogger(
            cfg.run_dir,
            enabled=topology.is_main,
            total_steps=cfg.num_steps,
            resumed_from=start or None,
        ) as logger,
    ):
        for step in range(start + 1, cfg.num_steps + 1):
            stopwatch = Stopwatch()
            with stopwatch("step"):
                share = rank_share(sampler.next(), topology.rank, topology.world_size)
                groups = rollout(
                    generator,
                    pool,
                    tokenizer,
                    share,
                    sampling,
                    group_size=cfg.group_size,
                    seed=cfg.seed * 1_000_003 + step,
                    stopwatch=stopwatch,
                )
                rewards = [verdict_rewards(group) for group in groups]
                advantages = group_advantages(rewards, cfg.advantage)
                minibatches = pack(
                    groups, advantages, policy.spec, topology, cfg.pack, replay=cfg.replay == "r3"
                )
                with stopwatch("old_logprobs"):
                    scored = [score_old(trainer, m, cfg.replay) for m in minibatches]
                means = Means()
                with stopwatch("update"):
                    for minibatch, old in zip(minibatches, scored, strict=True):
                        loss = bind_loss(cfg, old, topology)
                        update(trainer, minibatch, old, loss, means)
                if checkpointer.due(step):
                    with stopwatch("checkpoint"):
                        extra = state_of(step, trainer, sampler)
                        checkpointer.save(step, policy, trainer.optimizer, extra)
                with stopwatch("load_weights"):
                    generator.load_weights(policy, step)
            seconds = stopwatch.take()
            metrics = (
                batch_metrics(groups, policy.spec, topology)
                | router_metrics(groups, policy.spec, topology)
                | mismatch_of(scored, topology)
                | means.reduce(topology)
                | throughput_metrics(groups, minibatches, topology, seconds["timing_s/step"])
            )
            logger.log(step, metrics | seconds)
            if groups and step % cfg.sample_interval == 0:
                logger.text("rollouts", sample_text(groups[0], tokenizer), step)
    save_hf(policy, cfg.run_dir / "model", tokenizer=tokenizer, topology=topology)


ScoredMicrobatches = list[tuple[Microbatch, TokenScores]]


def score_old(trainer: Trainer, minibatch: Minibatch, replay: str) -> ScoredMicrobatches:
    """Each microbatch with its scores before the update; `r2` records its routes here."""
    scored = []
    for microbatch in minibatch.microbatches:
        old, live_TLK = trainer.score(microbatch)
        if replay == "r2":
            microbatch = replace(microbatch, routed_experts=live_TLK)
        scored.append((microbatch, old))
    return scored


def bind_loss(cfg: Config, scored: ScoredMicrobatches, topology: Topology) -> Loss:
    """The run's loss for one minibatch. Collective."""
    entropies = [old.entropy for _, old in scored]
    return cfg.losses.bind(
        cfg.loss, entropies, topology, max_completion_tokens=cfg.max_completion_tokens
    )


def update(
    trainer: Trainer, minibatch: Minibatch, scored: ScoredMicrobatches, loss: Loss, means: Means
) -> None:
    """One optimizer step. Without anything to train on, on any rank, all ranks skip it."""
    if not scored:
        return
    for microbatch, old in scored:
        means.update(
            trainer.forward_backward(
                microbatch,
                loss,
                num_rollouts=minibatch.num_rollouts,
                num_tokens=minibatch.num_tokens,
                old=old,
            )
        )
    report = trainer.step()
    means.add("actor/grad_norm", report.grad_norm)
    means.add("actor/lr", report.lr)
    means.add("actor/skipped_frac", float(report.skipped))


def mismatch_of(scored: list[ScoredMicrobatches], topology: Topology) -> dict[str, float]:
    """Trainer against generator over everything that was scored."""
    pairs = [pair for of_minibatch in scored for pair in of_minibatch]
    return mismatch_metrics(
        [old.logprobs for _, old in pairs], [m.rollout_logprobs for m, _ in pairs], topology
    )


def state_of(step: int, trainer: Trainer, sampler: PromptSampler) -> dict[str, Any]:
    """What a checkpoint holds besides weights and optimizer."""
    return {"step": step, "trainer": trainer.state_dict(), "sampler": sampler.state_dict()}


def restore(
    cfg: Config, checkpointer: Checkpointer, trainer: Trainer, sampler: PromptSampler
) -> int:
    """Continue from the newest whole checkpoint if asked to; returns the last finished step."""
    if not cfg.resume:
        checkpointer.require_unused()
        return 0
    path = checkpointer.latest()
    if path is None:
        return 0
    extra = checkpointer.load(path, trainer.policy, trainer.optimizer)
    trainer.load_state_dict(extra["trainer"])
    sampler.load_state_dict(extra["sampler"])
    return extra["step"]


if __name__ == "__main__":
    launch(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
