"""Supervised fine-tuning: the cold start before reinforcement learning.

Learns the assistant's turns of chat conversations, packed, with the mean over all loss tokens of a
step. Left out here: curation of the data (duplicates, contamination, filters).

    torchrun --nproc-per-node 2 recipes/sft.py --config configs/sft/debug.toml
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from compass.checkpoint.config import CheckpointConfig
from compass.distributed import ParallelConfig, init_topology, launch, read_flags
from compass.errors import UserError
from compass.models.config import ExportConfig, PolicyConfig
from compass.train.data import SftDataConfig
from compass.train.optim_config import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `recipes/sft.py`."""

    model: str
    """Hugging Face directory of the policy, a checkpoint, the folder of a run (its newest one), or
    the name of a spec for random weights."""
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
    num_epochs: int | None = None
    """Walks through the data; takes the place of `num_steps`. The last step may begin another."""
    data: SftDataConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        if self.num_epochs is not None and self.num_epochs < 1:
            raise UserError(f"num_epochs={self.num_epochs} must be at least 1")


if __name__ == "__main__":  # mistakes and --help are answered before what takes seconds to import
    config = read_flags(Config, __doc__)

from compass.means import Means
from compass.metrics import Stopwatch
from compass.models.load import find_model, open_policy
from compass.rl.memory.plan import require_sft_memory
from compass.rows import files_of
from compass.run.banner import Data
from compass.run.run import Run, claim_folder
from compass.text.tokenizer import Tokenizer
from compass.train.data import SftBatches, load_sft
from compass.train.loss import sft_loss
from compass.train.optim import check_groups
from compass.train.trainer import Trainer
from compass.train.validation import Validation


def main(cfg: Config) -> None:
    """Train, then write the model to `run_dir/model`."""
    topology = init_topology(cfg.parallel)
    cfg = replace(cfg, model=find_model(cfg.model, topology))
    require_sft_memory(cfg, topology)
    claim_folder(cfg, topology)
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    load = partial(
        load_sft,
        tokenizer=tokenizer,
        max_len=cfg.data.max_len,
        drop_long=cfg.data.drop_long,
        last_turn_only=cfg.data.last_turn_only,
    )
    examples = load(cfg.data.path)
    held_out = load(cfg.data.validation) if cfg.data.validation else []
    batches = SftBatches(
        examples,
        num_examples_per_step=cfg.data.num_examples_per_step,
        max_tokens_per_microbatch=cfg.data.max_tokens_per_microbatch,
        rank=topology.rank,
        world_size=topology.world_size,
        shuffle=cfg.data.shuffle,
        seed=cfg.data.seed,
    )
    if cfg.num_epochs is not None:
        cfg = replace(cfg, num_steps=batches.steps_of(cfg.num_epochs))
    validation = Validation(held_out, topology, cfg.data.max_tokens_per_microbatch)
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    check_groups(policy, cfg.optim)
    trainer = Trainer(policy, topology, cfg.optim, num_steps=cfg.num_steps)
    with Run(
        cfg,
        topology,
        policy,
        tokenizer,
        trainer.optimizer,
        {"trainer": trainer, "data": batches},
        data=Data(
            amount=f"{len(examples)} examples; {len(held_out)} held out",
            first=tokenizer.decode(examples[0].token_ids.tolist()),
        ),
        contents={
            "data.path": files_of(cfg.data.path),
            "data.validation": files_of(cfg.data.validation),
        },
    ) as run:
        if held_out and run.start == 0:
            run.log(0, validation.loss(trainer))
        for step in run.steps():
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
                run.end_step(step, gradient_norms=[report.grad_norm])
                if run.must_save(step):
                    with stopwatch("checkpoint"):
                        run.save(step)
                if run.must_export(step):
                    with stopwatch("export"):
                        run.export(step)
            seconds = stopwatch.take()
            evaluated = {}
            if held_out and run.must_evaluate(step, cfg.data.validation_interval):
                evaluated = validation.loss(trainer)
            run.log(
                step,
                means.reduce(topology)
                | evaluated
                | seconds
                | {
                    "actor/grad_norm": report.grad_norm,
                    "actor/lr": report.lr,
                    "actor/skipped_frac": float(report.skipped),
                    "perf/tokens_per_s": batch.num_loss_tokens / seconds["timing_s/step"],
                    "sft/epoch": batch.epoch,
                },
            )
        if run.must_leave_model:
            run.leave_model()


if __name__ == "__main__":
    launch(lambda: main(config))
