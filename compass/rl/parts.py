"""What a run of reinforcement learning is made of, ready for its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from compass.distributed import Topology
from compass.generate.generator import Generator
from compass.models.load import open_policy
from compass.models.policy import Policy
from compass.own import is_own, own_file
from compass.rl.config import RlConfig
from compass.rl.curriculum import stages_of
from compass.rl.evaluation.held_out import HeldOut
from compass.rl.judgeable import load_judgeable
from compass.rl.own_functions import Advantages, open_advantages, open_metrics
from compass.rl.placement.schedule import RolloutSchedule
from compass.rl.recorder import Recorder, open_recorder
from compass.rl.sampler import Curriculum, PromptSampler
from compass.rl.writer import RolloutWriter, open_writer
from compass.rl.zero_variance.stages import ZeroVarianceStages
from compass.rows import files_of
from compass.run.banner import Data
from compass.run.run import Run
from compass.text.tokenizer import Tokenizer, check_stop_tokens
from compass.train.optim import check_groups
from compass.train.policy_loss import BindLoss
from compass.train.trainer import Trainer
from compass.types import Prompt, RolloutGroup, SamplingParams


@dataclass(frozen=True, kw_only=True)
class RlParts:
    """What the run is made of. Built by `prepare`."""

    tokenizer: Tokenizer
    prompts: list[Prompt]
    held_out: dict[str, HeldOut]
    policy: Policy
    trainer: Trainer
    stages: ZeroVarianceStages
    sampler: PromptSampler
    schedule: RolloutSchedule
    advantages: Advantages
    bind_loss: BindLoss
    metrics: Callable[[Sequence[RolloutGroup]], dict[str, float]]
    """Of the user's own."""
    run: Run

    def open_writer(self, cfg: RlConfig) -> AbstractContextManager[RolloutWriter]:
        """What rolls out the run's prompts with the policy as it is."""
        sampling = SamplingParams(
            max_completion_tokens=cfg.max_completion_tokens,
            temperature=cfg.temperature,
            stop_token_ids=self.tokenizer.stop_token_ids,
        )
        generator = Generator(
            self.policy, cfg.generator, self.trainer.topology, policy_version=self.run.start
        )
        prompts = [*self.prompts, *(p for h in self.held_out.values() for p in h.prompts)]
        return open_writer(generator, self.tokenizer, prompts, sampling, cfg.gym)

    def open_recorder(self, cfg: RlConfig) -> AbstractContextManager[Recorder]:
        """What writes the run's rollouts to disk."""
        return open_recorder(
            cfg,
            self.stages,
            self.tokenizer,
            self.trainer.topology,
            num_experts=self.policy.spec.num_experts,
            last_step=self.run.start,
        )


def prepare(cfg: RlConfig, topology: Topology) -> RlParts:
    """Read what is given, build what learns, and go on where a checkpoint says."""
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    check_stop_tokens(tokenizer, topology.is_main, raw=cfg.raw, unchecked=cfg.allow_stop_mismatch)
    load = partial(load_judgeable, raw=cfg.raw, drop=cfg.drop_unjudgeable, gym=cfg.gym)
    bind_loss = cfg.losses.choose(
        cfg.loss, max_completion_tokens=cfg.max_completion_tokens, terms=cfg.terms
    )
    advantages = open_advantages(cfg.advantage, topology)
    metrics = open_metrics(cfg.metric, topology)
    prompts = load(cfg.prompts, topology=topology)
    held_out = {
        name: HeldOut(config=of_set, prompts=load(of_set.data, topology=topology))
        for name, of_set in cfg.eval.items()
    }
    open_start = partial(open_policy, cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    policy = open_start()
    check_groups(policy, cfg.optim)
    trainer = Trainer(
        policy,
        topology,
        cfg.optim,
        num_steps=cfg.num_steps * cfg.pack.num_minibatches,
        temperature=cfg.temperature,
        correction=cfg.correction.resolve(quantised=cfg.generator.quantised),
        reference=open_start().requires_grad_(False) if cfg.kl.coef else None,
        entropy_gradient=cfg.entropy_coef != 0,
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
        tokenizer,
        trainer.optimizer,
        {"trainer": trainer, "sampler": sampler, "zero_variance": stages, "schedule": schedule},
        data=Data(
            amount="; ".join(
                f"{len(of)} {name}"
                for name, of in {
                    "prompts": prompts,
                    **{f"of eval.{name}": h.prompts for name, h in held_out.items()},
                }.items()
            ),
            first=tokenizer.prompt_text(prompts[0]),
        ),
        contents={
            "prompts": files_of(cfg.prompts),
            **{f"eval.{name}.data": files_of(of_set.data) for name, of_set in cfg.eval.items()},
            **own_files(cfg),
        },
        is_spent=lambda: stages.has_spent(cfg.max_generated_tokens),
    )
    return RlParts(
        tokenizer=tokenizer,
        prompts=prompts,
        held_out=held_out,
        policy=policy,
        trainer=trainer,
        stages=stages,
        sampler=sampler,
        schedule=schedule,
        advantages=advantages,
        bind_loss=bind_loss,
        metrics=metrics,
        run=run,
    )


def own_files(cfg: RlConfig) -> dict[str, Path | tuple[Path, ...]]:
    """The files of the user's own functions, by the field that names them."""
    return {
        **({"loss": own_file(cfg.loss)} if is_own(cfg.loss) else {}),
        **({"advantage.fn": own_file(cfg.advantage.fn)} if cfg.advantage.fn else {}),
        **({"metric": tuple(map(own_file, cfg.metric))} if cfg.metric else {}),
        **{f"gym.rewards.{name}.fn": own_file(r.fn) for name, r in cfg.gym.rewards.items()},
    }


def make_sampler(
    cfg: RlConfig, prompts: list[Prompt], stages: ZeroVarianceStages, topology: Topology
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
