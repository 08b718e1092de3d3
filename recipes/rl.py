"""Reinforcement learning: rollouts, verifiers, zero-variance stages, replayed updates.

The policy generates with its own weights, rewards are scored while others still decode, flat groups
pass four stages before they are given up, and the update replays the rollout's experts.

    torchrun --nproc-per-node 2 recipes/rl.py --config configs/rl/debug.toml --model runs/sft/model
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from compass.distributed import init_topology, launch, read_flags
from compass.rl.config import RlConfig as Config

if __name__ == "__main__":  # mistakes and --help are answered before what takes seconds to import
    config = read_flags(Config, __doc__)

from compass.metrics import Stopwatch
from compass.models.load import find_model
from compass.rl.advantage import shaping_metrics
from compass.rl.evaluation.held_out import examine
from compass.rl.memory.plan import require_rl_memory
from compass.rl.pack import pack
from compass.rl.parts import prepare
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.report import step_metrics
from compass.rl.rollout import rollout
from compass.rl.update import score_old, update, update_metrics
from compass.rl.zero_variance.dynamic import sample_groups
from compass.run.run import claim_folder


def main(cfg: Config) -> None:
    """Train, then write the model to `run_dir/model`."""
    topology = init_topology(cfg.parallel)
    cfg = replace(cfg, model=find_model(cfg.model, topology))
    require_rl_memory(cfg, topology)
    claim_folder(cfg, topology)
    parts = prepare(cfg, topology)
    policy, trainer, run = parts.policy, parts.trainer, parts.run
    sampler, stages, schedule = parts.sampler, parts.stages, parts.schedule
    with parts.open_writer(cfg) as writer, parts.open_recorder(cfg) as recorder, run:
        roll_out = partial(
            rollout,
            writer,
            share=schedule.share,
            group_size=cfg.group_size,
            growth=partial(stages.growth, expected_tokens=schedule.expected_tokens),
            in_waves=cfg.schedule.deterministic,
        )
        if parts.held_out and run.start == 0:
            run.log(0, examine(writer, parts.held_out, seed=cfg.seed))
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
                advantages = parts.advantages(groups, rewards)
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
                    selection=cfg.selection,
                )
                with stopwatch("old_logprobs"):
                    scored = score_old(
                        trainer,
                        batch.minibatches,
                        cfg.replay,
                        entropies_first=cfg.losses.needs_entropies(cfg.loss),
                    )
                updates = []
                with stopwatch("update"):
                    for minibatch in scored:
                        loss = parts.bind_loss(minibatch.entropies, topology)
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
                if run.must_export(step):
                    with stopwatch("export"):
                        run.export(step)
                fp8 = writer.generator.fp8_metrics()  # of the weights that wrote these rollouts
                with stopwatch("load_weights"):
                    writer.generator.load_weights(policy, step)
            recorder.add(step, groups, numbers, rewards, advantages, updates, written, stopwatch)
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
            metrics |= parts.metrics(groups)
            metrics["perf/tokens_total"] = float(stages.num_generated_tokens)
            if parts.held_out and run.must_evaluate(step, cfg.eval_interval):
                metrics |= examine(writer, parts.held_out, seed=cfg.seed)
            run.log(step, metrics | seconds)
        if run.must_leave_model:
            stages.write(cfg.run_dir, topology)
            run.leave_model()


if __name__ == "__main__":
    launch(lambda: main(config))
