"""Reinforcement learning: rollouts, verifiers, zero-variance stages, replayed updates.

The policy generates with its own weights, rewards are scored while others still decode, flat groups
pass four stages before they are given up, and the update replays the rollout's experts.

    torchrun --nproc-per-node 2 recipes/rl.py --config configs/rl/debug.toml --model runs/sft/model
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from compass.checkpoint import CheckpointConfig
from compass.config import parse
from compass.distributed import ParallelConfig, Topology, init_topology, launch
from compass.errors import UserError
from compass.generate.generator import Generator, GeneratorConfig
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.mailbox import Mailbox
from compass.metrics import Stopwatch
from compass.models.hf.weights import save_hf
from compass.models.load import open_policy
from compass.models.parallel import PolicyConfig
from compass.rl.advantage import AdvantageConfig, group_advantages, shaping_metrics
from compass.rl.curriculum import CurriculumConfig, stages_of
from compass.rl.encoded_prompts import check_prompts
from compass.rl.evaluate import eval_metrics, evaluate
from compass.rl.judgeable import load_judgeable
from compass.rl.memory.plan import require_rl_memory
from compass.rl.pack import PackConfig, pack
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.placement.schedule import RolloutSchedule, ScheduleConfig
from compass.rl.report import sample_text, step_metrics
from compass.rl.rollout import rollout
from compass.rl.sampler import Curriculum, PromptSampler
from compass.rl.update import Replay, score_old, update, update_metrics
from compass.rl.zero_variance.dynamic import DynamicSamplingConfig, sample_groups
from compass.rl.zero_variance.stages import ZeroVarianceConfig, ZeroVarianceStages
from compass.run.run import Run, claim_folder
from compass.text.tokenizer import Tokenizer, check_stop_tokens
from compass.train.correction import CorrectionConfig
from compass.train.optim import OptimConfig
from compass.train.policy_loss import PolicyLoss, PolicyLossConfig
from compass.train.trainer import Trainer
from compass.types import Prompt, SamplingParams


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
    drop_unjudgeable: bool = False
    """Leave out, and count, prompts that their domain cannot judge; otherwise they are refused."""
    allow_stop_mismatch: bool = False
    """Go on although the chat template ends a turn in none of the stop tokens."""
    run_dir: Path = Path("runs/rl")
    """Gets config, metrics, checkpoints and, at the end, the model as a Hugging Face directory."""
    resume: bool = False
    """Continue from the newest whole checkpoint of `run_dir`; start fresh when there is none."""
    seed: int = 0
    """Of the prompt order, the pre-filter and the sampling noise."""
    num_steps: int = 100
    """Rollout batches to train on."""
    max_generated_tokens: int | None = None
    """End the run after the step that reaches this many generated tokens, over all ranks."""
    num_prompts_per_step: int = 32
    """Prompts of one rollout batch, over all ranks."""
    group_size: int = 8
    """Completions of each prompt, before any expansion."""
    temperature: float = 1.0
    """Of sampling; the trainer divides logits by it too."""
    max_completion_tokens: int = 1024
    """Longest completion."""
    loss: PolicyLoss = "espo"
    """Which policy loss; its values are in the table of that name in `losses`."""
    replay: Replay = "r3"
    """Expert choices of the update: the rollout's (`r3`), old scores' (`r2`), new ones (`off`)."""
    eval_prompts: Path | None = None
    """Prompt file to evaluate on during the run: one completion each, logged as `eval/*`."""
    eval_interval: int = 10
    """Steps between evaluations; there is one before the first step too."""
    sample_interval: int = 10
    """Steps between rollouts written out as text."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    gym: PoolConfig = field(default_factory=PoolConfig)
    zv: ZeroVarianceConfig = field(default_factory=ZeroVarianceConfig)
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    losses: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "group_size", "eval_interval", "sample_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        self.pack.check(self.num_prompts_per_step)
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0, for groups to differ")
        if self.curriculum.enabled and self.dynamic_sampling.max_rounds > 1:
            raise UserError(
                f"dynamic_sampling.max_rounds={self.dynamic_sampling.max_rounds} together with "
                "curriculum.enabled, whose steps would count rounds; use one of the two"
            )


def main(cfg: Config) -> None:
    topology = init_topology(cfg.parallel)
    require_rl_memory(cfg, topology)
    claim_folder(cfg, topology)
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    check_stop_tokens(tokenizer, topology.is_main, raw=cfg.raw, unchecked=cfg.allow_stop_mismatch)
    load = partial(load_judgeable, raw=cfg.raw, drop=cfg.drop_unjudgeable, gym=cfg.gym)
    prompts = load(cfg.prompts, topology=topology)
    eval_prompts = load(cfg.eval_prompts, topology=topology) if cfg.eval_prompts else []
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    trainer = Trainer(
        policy,
        topology,
        cfg.optim,
        num_steps=cfg.num_steps * cfg.pack.num_minibatches,
        temperature=cfg.temperature,
        correction=cfg.correction.resolve(quantised=cfg.generator.quantised),
    )
    stages = ZeroVarianceStages(
        cfg.zv,
        seed=cfg.seed,
        group_size=cfg.group_size,
        completion_limits=cfg.curriculum.completion_limits(cfg.max_completion_tokens),
    )
    sampler = make_sampler(cfg, prompts, stages, topology)
    schedule = RolloutSchedule(
        cfg.schedule, topology, max_completion_tokens=cfg.max_completion_tokens
    )
    run = Run(
        cfg,
        topology,
        policy,
        trainer.optimizer,
        {"trainer": trainer, "sampler": sampler, "zero_variance": stages, "schedule": schedule},
        contents={
            "model": policy.spec,
            "tokenizer": tokenizer.digest,
            "prompts": cfg.prompts,
            "eval_prompts": cfg.eval_prompts,
        },
        is_spent=lambda: stages.has_spent(cfg.max_generated_tokens),
    )
    generator = Generator(policy, cfg.generator, topology, policy_version=run.start)
    sampling = SamplingParams(
        max_completion_tokens=cfg.max_completion_tokens,
        temperature=cfg.temperature,
        stop_token_ids=tokenizer.stop_token_ids,
    )
    encoded = check_prompts(generator, tokenizer, [*prompts, *eval_prompts], sampling)
    with (
        VerifierPool(
            cfg.gym,
            domains={prompt.domain for prompt in [*prompts, *eval_prompts]},
            tokenizer_directory=cfg.tokenizer or cfg.model,
            stop_token_ids=tokenizer.stop_token_ids,
        ) as pool,
        run,
    ):
        writers = (generator, pool, encoded, Mailbox(topology))
        roll_out = partial(
            rollout,
            *writers,
            sampling=sampling,
            share=schedule.share,
            group_size=cfg.group_size,
            growth=partial(stages.growth, expected_tokens=schedule.expected_tokens),
            in_waves=cfg.schedule.deterministic,
        )
        examine = partial(
            evaluate, *writers, eval_prompts, sampling, topology, num_samples=1, seed=cfg.seed
        )
        if eval_prompts and run.start == 0:
            run.log(0, eval_metrics(examine()))
        for step in run.steps():
            stopwatch, written = Stopwatch(), RankRollouts(topology.rank)
            with stopwatch("step"):
                groups, numbers, num_skipped = sample_groups(
                    sampler,
                    partial(roll_out, written=written, stopwatch=stopwatch),
                    topology,
                    max_rounds=cfg.dynamic_sampling.max_rounds,
                    seed=cfg.seed * 1_000_003 + step,
                )
                rewards = [stages.rewards(group, sampler.max_completion_tokens) for group in groups]
                advantages = group_advantages(groups, rewards, cfg.advantage)
                batch = pack(
                    groups,
                    advantages,
                    written,
                    policy.spec,
                    topology,
                    cfg.pack,
                    numbers=numbers,
                    replay=cfg.replay == "r3",
                    flat_signs=list(map(stages.flat_sign, groups, rewards)),
                    stay_with=schedule.stay_with,
                )
                with stopwatch("old_logprobs"):
                    scored = score_old(
                        trainer,
                        batch.minibatches,
                        cfg.replay,
                        entropies_first=cfg.losses.needs_entropies(cfg.loss),
                    )
                updates, limit = [], cfg.max_completion_tokens
                with stopwatch("update"):
                    for minibatch in scored:
                        loss = cfg.losses.bind(
                            cfg.loss, minibatch.entropies, topology, max_completion_tokens=limit
                        )
                        updates.append(update(trainer, minibatch, loss, stages.flat_advantages))
                account = stages.account(
                    groups, rewards, topology, num_skipped=num_skipped, seconds=stopwatch.seconds
                )
                learned = schedule.account(groups) | shaping_metrics(groups, advantages, topology)
                run.end_step(
                    step,
                    gradient_norms=[u.report.grad_norm for u in updates if u.report],
                    num_verdicts=sum(len(group.valid_verdicts) for group in groups),
                )
                if run.must_save(step):
                    with stopwatch("checkpoint"):
                        run.save(step)
                fp8 = generator.fp8_metrics()  # of the weights that wrote this step's rollouts
                with stopwatch("load_weights"):
                    generator.load_weights(policy, step)
            seconds = stopwatch.take()
            metrics = step_metrics(
                groups,
                batch,
                written,
                policy.spec,
                topology,
                seconds,
                num_workers=cfg.gym.num_workers,
                num_slots=cfg.generator.max_num_seqs,
            )
            metrics |= update_metrics(updates, topology) | account.metrics() | learned | fp8
            metrics["perf/tokens_total"] = float(stages.num_generated_tokens)
            if eval_prompts and run.must_evaluate(step, cfg.eval_interval):
                metrics |= eval_metrics(examine())
            run.log(step, metrics | seconds)
            if step % cfg.sample_interval == 0:
                run.text("rollouts", sample_text(groups, written, tokenizer), step)
        if run.must_export:
            dtype = cfg.policy.exported
            save_hf(policy, run.model_dir, tokenizer=tokenizer, topology=topology, dtype=dtype)
            stages.write(cfg.run_dir, topology)


def make_sampler(
    cfg: Config, prompts: list[Prompt], stages: ZeroVarianceStages, topology: Topology
) -> PromptSampler:
    """The walk through the prompts: pre-filtered, in the curriculum's stages if there are any."""
    stages_in_time = stages_of(
        cfg.curriculum, num_steps=cfg.num_steps, max_completion_tokens=cfg.max_completion_tokens
    )
    return PromptSampler(
        prompts,
        num_prompts_per_step=cfg.num_prompts_per_step,
        seed=cfg.seed,
        keep=stages.keep,
        curriculum=Curriculum(
            stages=stages_in_time,
            pass_rate=stages.pass_rate,
            log=Console(soft_wrap=True, quiet=not topology.is_main).print,
        ),
    )


if __name__ == "__main__":
    launch(lambda: main(parse(Config, sys.argv[1:], description=__doc__ or "")))
