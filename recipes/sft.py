"""Supervised fine-tuning: the cold start before reinforcement learning.

Learns the assistant's turns of chat conversations, packed, with the mean over all loss tokens of a
step. Left out here: curation of the data (duplicates, contamination, filters).

    torchrun --nproc-per-node 2 recipes/sft.py --config configs/sft/debug.toml
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from compass.checkpoint import CheckpointConfig, Checkpointer
from compass.config import parse, write_resolved
from compass.distributed import ParallelConfig, init_topology, launch, raised_together
from compass.means import Means
from compass.metrics import MetricsLogger, Stopwatch
from compass.models.hf import check_export, save_hf
from compass.models.load import open_policy
from compass.models.parallel import PolicyConfig
from compass.tokenizer import Tokenizer
from compass.train.data import SftBatches, SftDataConfig, load_sft
from compass.train.loss import sft_loss
from compass.train.optim import OptimConfig
from compass.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `recipes/sft.py`."""

    model: str
    """Hugging Face directory of the policy, or the name of a spec for random weights."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; by default the model's."""
    run_dir: Path = Path("runs/sft")
    """Gets config, metrics, checkpoints and, at the end, the model as a Hugging Face directory."""
    resume: bool = False
    """Continue from the newest whole checkpoint of `run_dir`; start fresh when there is none."""
    seed: int = 0
    """Of random weights."""
    num_steps: int = 100
    """Optimizer steps."""
    data: SftDataConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


def main(cfg: Config) -> None:
    """Train, then write the model to `run_dir/model`."""
    topology = init_topology(cfg.parallel)
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    examples = load_sft(
        cfg.data.path,
        tokenizer,
        cfg.data.max_len,
        drop_long=cfg.data.drop_long,
        last_turn_only=cfg.data.last_turn_only,
    )
    batches = SftBatches(
        examples,
        num_examples_per_step=cfg.data.num_examples_per_step,
        max_tokens_per_microbatch=cfg.data.max_tokens_per_microbatch,
        rank=topology.rank,
        world_size=topology.world_size,
        shuffle=cfg.data.shuffle,
        seed=cfg.data.seed,
    )
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    trainer = Trainer(policy, topology, cfg.optim, num_steps=cfg.num_steps)
    checkpointer = Checkpointer(cfg.run_dir / "checkpoints", topology, cfg.checkpoint)
    start = restore(cfg, checkpointer, trainer, batches)
    with raised_together(topology):
        if topology.is_main:
            check_export(cfg.run_dir / "model")
            write_resolved(cfg, cfg.run_dir)
    with MetricsLogger(
        cfg.run_dir,
        enabled=topology.is_main,
        total_steps=cfg.num_steps,
        resumed_from=start or None,
    ) as logger:
        for step in range(start + 1, cfg.num_steps + 1):
            stopwatch, means = Stopwatch(), Means()
            with stopwatch("step"):
                batch = batches.next()
                for microbatch in batch.microbatches:
                    of_pass, _ = trainer.forward_backward(
                        microbatch,
                        sft_loss,
                        num_rollouts=batch.num_examples,
                        num_tokens=batch.num_loss_tokens,
                    )
                    means.update(of_pass)
                report = trainer.step()
                if checkpointer.due(step):
                    with stopwatch("checkpoint"):
                        extra = {
                            "step": step,
                            "trainer": trainer.state_dict(),
                            "cursor": batches.cursor,
                        }
                        checkpointer.save(step, policy, trainer.optimizer, extra)
            seconds = stopwatch.take()
            logger.log(
                step,
                means.reduce(topology)
                | seconds
                | {
                    "actor/grad_norm": report.grad_norm,
                    "actor/lr": report.lr,
                    "actor/skipped_frac": float(report.skipped),
                    "perf/tokens_per_s": batch.num_loss_tokens / seconds["timing_s/step"],
                    "sft/epoch": batch.epoch,
                },
            )
    save_hf(policy, cfg.run_dir / "model", tokenizer=tokenizer, topology=topology)


def restore(cfg: Config, checkpointer: Checkpointer, trainer: Trainer, batches: SftBatches) -> int:
    """Continue from the newest whole checkpoint if asked to; returns the last finished step."""
    if not cfg.resume:
        checkpointer.require_unused()
        return 0
    path = checkpointer.latest()
    if path is None:
        return 0
    extra = checkpointer.load(path, trainer.policy, trainer.optimizer)
    trainer.load_state_dict(extra["trainer"])
    batches.cursor = extra["cursor"]
    return extra["step"]


if __name__ == "__main__":
    launch(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
