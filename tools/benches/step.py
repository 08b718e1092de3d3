"""One whole RL step against TRL's GRPOTrainer, on the same weights, prompts and imposed lengths.

Our side is the body of recipes/rl.py with its defaults: routes and log-probabilities recorded,
stages, packing, replayed update with entropies, clipping and every metric, logged. Left out are
verifier processes (a verdict here is the parity of the sample) and checkpoints. TRL's step is what
its users run (see trl.py). Both take one AdamW step on DAPO's loss in float32, with no
reference model. One thread, sides interleaved, medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from benches.batch import (
    MOST_TOKENS,
    Batch,
    Lengths,
    Seconds,
    by_clock,
    draw_batch,
    in_transformers,
    seconds_of,
    spec_named,
)
from rich.console import Console
from rich.table import Table

from compass.config import parse
from compass.distributed import ParallelConfig, Topology, init_topology
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.metrics import MetricsLogger, Stopwatch
from compass.models.config import PolicyConfig
from compass.models.parallel import build_policy, full_tensor, init_policy
from compass.models.specs import ModelSpec
from compass.rl.advantage import AdvantageConfig, Rewards, group_advantages
from compass.rl.pack import PackConfig, PackedBatch, Trained, pack, pack_microbatch
from compass.rl.placement.rank_rollouts import RankRollouts
from compass.rl.report import step_metrics
from compass.rl.rollout import make_rollout, make_tokens
from compass.rl.update import score_old, update, update_metrics
from compass.rl.zero_variance.stages import ZeroVarianceConfig, ZeroVarianceStages
from compass.train.optim_config import OptimConfig
from compass.train.policy_loss import PolicyLossConfig
from compass.train.trainer import Trainer
from compass.types import Prompt, Rollout, RolloutGroup, Score

if TYPE_CHECKING:
    from benches.trl import TrlPeer

LIMITS = {"tail": 3.5, "uniform": 1.1}
"""Least ratio of TRL's time to ours that counts as good enough."""
LEARNING_RATE = 1e-6
LOSS = "dapo"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `tools/bench.py step`."""

    json: bool = False
    """End with one line of JSON."""
    lengths: Lengths = "tail"
    """`tail`: lognormal with sigma 1 and median 40, at most 256 tokens; `uniform`: 64 each."""
    spec: str = "debug-4m"
    """Named model; random weights."""
    num_prompts: int = 16
    """Prompts of 32 tokens."""
    group_size: int = 8
    """Completions of each."""
    repeats: int = 3
    """Counted steps of each side, after one that is not."""
    trl_batch: int = 32
    """Completions in one of TRL's forward and backward passes, which it accumulates; divides
    their number. 32 was its fastest of 16, 32 and 128."""


def run(words: Sequence[str], description: str) -> Mapping[str, Any] | None:
    """Measure, print a table, and return the figures if JSON is wanted."""
    cfg = parse(Config, words, description=description)
    spec = spec_named(cfg.spec)
    try:
        from benches.trl import TrlPeer
    except ModuleNotFoundError as error:
        raise UserError(
            f"bench step needs {error.name}, which is not installed: pip install '.[bench]'"
        ) from error
    size = cfg.num_prompts * cfg.group_size
    if size % cfg.trl_batch:
        raise UserError(
            f"trl_batch={cfg.trl_batch} does not divide the {size} completions; choose a divisor"
        )
    torch.set_num_threads(1)
    batch = draw_batch(
        cfg.lengths,
        vocab_size=spec.vocab_size,
        num_prompts=cfg.num_prompts,
        group_size=cfg.group_size,
    )
    topology = init_topology(ParallelConfig(device="cpu"))
    mine: list[Seconds] = []
    with tempfile.TemporaryDirectory() as folder:
        compass = CompassStep(spec, batch, topology, Path(folder) / "compass")
        peer = TrlPeer(
            in_transformers(compass.policy, topology, Path(folder) / "model"),
            batch,
            Path(folder) / "trl",
            learning_rate=LEARNING_RATE,
            per_device=cfg.trl_batch,
            num_steps=cfg.repeats + 1,
            before_first=lambda peer: check_same_update(compass, peer),
            after_each=lambda: mine.append(seconds_of(compass.step)),
        )
        peer.train()
        compass.logger.close()
    dist.destroy_process_group()
    assert {step.num_tokens for step in peer.steps} == {batch.num_tokens}
    runs = {"compass": mine[1:], "trl": [step.total for step in peer.steps[1:]]}
    parts = {"compass": compass.parts[1:], "trl": [step.parts for step in peer.steps[1:]]}
    return report(cfg, batch.num_tokens, runs, parts)


class CompassStep:
    """Steps of recipes/rl.py on an imposed batch."""

    def __init__(self, spec: ModelSpec, batch: Batch, topology: Topology, run_dir: Path) -> None:
        num_prompts, group_size = batch.lengths_PG.shape
        self.topology = topology
        self.batch = batch
        self.policy = build_policy(spec, topology, PolicyConfig(), lambda p: init_policy(p, 0))
        optim = OptimConfig(lr=LEARNING_RATE, warmup_steps=0)
        self.trainer = Trainer(self.policy, topology, optim, num_steps=1)
        num_slots = num_prompts * group_size
        self.generator = Generator(
            self.policy, GeneratorConfig(max_num_seqs=num_slots, kv_cache_gb=0.5), topology
        )
        self.stages = ZeroVarianceStages(
            ZeroVarianceConfig(), seed=0, group_size=group_size, completion_limits=(MOST_TOKENS,)
        )
        quiet = Console(quiet=True)
        self.logger = MetricsLogger(run_dir, enabled=True, total_steps=1, console=quiet)
        self.parts: list[dict[str, float]] = []
        """CPU seconds of the parts of each step."""

    def step(self) -> None:
        """Roll out, train, refresh the generator, log."""
        stopwatch, written = Stopwatch(time.process_time), RankRollouts(0)
        with stopwatch("step"):
            with stopwatch("rollout"):
                groups = self.roll_out(written)
            with stopwatch("pack"):
                rewards = [self.stages.rewards(group) for group in groups]
                batch = self.pack(groups, rewards, written)
            losses, updates = PolicyLossConfig(), []
            bind_loss = losses.choose(LOSS, max_completion_tokens=MOST_TOKENS)
            with stopwatch("old_logprobs"):
                scored = score_old(
                    self.trainer,
                    batch.minibatches,
                    "r3",
                    entropies_first=losses.needs_entropies(LOSS),
                )
            with stopwatch("update"):
                for minibatch in scored:
                    loss = bind_loss(minibatch.entropies, self.topology)
                    updates.append(
                        update(self.trainer, minibatch, loss, self.stages.flat_advantages)
                    )
            account = self.stages.account(
                groups, rewards, self.topology, num_skipped=0, seconds=stopwatch.seconds
            )
            with stopwatch("load_weights"):
                self.generator.load_weights(self.policy, len(self.parts) + 1)
        self.parts.append(stopwatch.seconds)
        seconds = stopwatch.take() | {"timing_s/reward_wait": 0.0}
        metrics = step_metrics(
            groups,
            batch,
            written,
            self.policy.spec,
            self.topology,
            seconds,
            num_workers=1,
            num_slots=self.generator.config.max_num_seqs,
        )
        metrics |= update_metrics(updates, self.topology) | account.metrics()
        self.logger.log(len(self.parts), metrics | seconds)

    def roll_out(self, written: RankRollouts) -> list[RolloutGroup]:
        """The batch's completions, each scored as it ends."""
        rollouts: dict[str, list[Rollout]] = {}
        requests = self.batch.requests(1.0)
        written.begin_round()
        for completion in self.generator.generate(requests, seed=len(self.parts)):
            slot = written.add(make_tokens(completion))
            score = every_other(completion.sample)
            rollout = make_rollout(completion, score, holder=written.rank, slot=slot)
            rollouts.setdefault(rollout.prompt_id, []).append(rollout)
        groups = [
            RolloutGroup(
                prompt=Prompt(id=name, messages=()),
                rollouts=tuple(sorted(rollouts[name], key=lambda r: r.sample)),
            )
            for name in dict.fromkeys(request.prompt_id for request in requests)
        ]
        num_tokens = sum(r.num_completion_tokens for group in groups for r in group.rollouts)
        assert num_tokens == self.batch.num_tokens, f"{num_tokens}, not {self.batch.num_tokens}"
        return groups

    def pack(
        self, groups: Sequence[RolloutGroup], rewards: Sequence[Rewards], written: RankRollouts
    ) -> PackedBatch:
        """What the update trains on, routes to replay included."""
        return pack(
            groups,
            group_advantages(groups, rewards, AdvantageConfig()),
            written,
            self.policy.spec,
            self.topology,
            PackConfig(),
            numbers=range(len(groups)),
            replay=True,
            flat_signs=[
                self.stages.flat_sign(group, of_group)
                for group, of_group in zip(groups, rewards, strict=True)
            ],
        )


def check_same_update(compass: CompassStep, peer: TrlPeer) -> None:
    """The gate: the same completions have the same log-probabilities, loss and gradient on both
    sides. Ours replays the rollout's routes."""
    written = RankRollouts(0)
    compass.generator.load_weights(compass.policy, 0)  # the export has put them away
    groups = compass.roll_out(written)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [compass.stages.rewards(group) for group in groups]
    by_group = group_advantages(groups, rewards, AdvantageConfig())
    advantages = [advantage for of_group in by_group for advantage in of_group]
    tokens = [written[rollout.slot] for rollout in rollouts]
    microbatch = pack_microbatch(
        [Trained(tokens=t, advantage=a) for t, a in zip(tokens, advantages, strict=True)],
        compass.policy.spec,
        replay=True,
    )
    loss = PolicyLossConfig().choose(LOSS, max_completion_tokens=MOST_TOKENS)([], compass.topology)
    means, seen = compass.trainer.forward_backward(
        microbatch, loss, num_rollouts=len(rollouts), num_tokens=len(microbatch.rows)
    )
    gradients = [full_tensor(p.grad) for p in compass.policy.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients).item()
    compass.trainer.optimizer.zero_grad()
    compass.generator.load_weights(compass.policy, 0)  # and so has the pass above
    theirs = peer.examine([t.token_ids[t.loss_mask].tolist() for t in tokens], advantages)
    gap = (seen.scores.logprobs - theirs.logprobs_R).abs().max().item()
    assert gap <= 1e-4, f"log-probabilities differ by up to {gap:.1e}"
    mine = means.reduce(compass.topology)["actor/pg_loss"]
    assert abs(mine - theirs.loss) <= 1e-5, f"losses {mine} and {theirs.loss}"
    off = abs(grad_norm / theirs.grad_norm - 1)
    assert off <= 1e-3, f"gradient norms {grad_norm} and {theirs.grad_norm}"


def every_other(sample: int) -> Score:
    """A verdict that leaves no group flat: 1 and 0 in turn, like the peer's reward."""
    verdict = float(sample % 2)
    return Score(verdict=verdict, reward=verdict, valid=True, reason="", breakdown={}, seconds=0.0)


def report(
    cfg: Config,
    num_tokens: int,
    runs: Mapping[str, Sequence[Seconds]],
    parts: Mapping[str, Sequence[Mapping[str, float]]],
) -> Mapping[str, Any] | None:
    """Print what was measured; the figures, if JSON is wanted."""
    cpu = {side: statistics.median(run.cpu for run in of_side) for side, of_side in runs.items()}
    ratio = cpu["trl"] / cpu["compass"]
    medians = {
        side: {
            name: statistics.median(step[name] for step in of_side)
            for name in of_side[0]
            if name != "step"
        }
        for side, of_side in parts.items()
    }
    table = Table(
        title=f"one RL step: {cfg.spec}, {cfg.num_prompts} x {cfg.group_size} completions, "
        f"{cfg.lengths} lengths, {num_tokens:,} tokens, one thread"
    )
    table.add_column("side")
    for column in ("CPU seconds", "ratio", "of which"):
        table.add_column(column, justify="left" if column == "of which" else "right")
    for side, seconds in cpu.items():
        share = ", ".join(f"{name} {value:.2f}" for name, value in medians[side].items())
        table.add_row(side, f"{seconds:.2f}", f"{seconds / cpu['compass']:.2f}", share)
    console = Console()
    console.print(table)
    limit = LIMITS[cfg.lengths]
    console.print(f"limit {limit:g} against TRL: {'met' if ratio >= limit else 'MISSED'}")
    if not cfg.json:
        return None
    return {
        "lengths": cfg.lengths,
        "ratio": ratio,
        "limit": limit,
        "runs": {side: by_clock(of_side) for side, of_side in runs.items()},
        "parts": medians,
        "completion_tokens": num_tokens,
    }
