"""What a run of reinforcement learning is told: every field of `recipes/rl.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from compass.checkpoint.config import CheckpointConfig
from compass.distributed import ParallelConfig
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.gym.pool.pool import PoolConfig
from compass.models.config import ExportConfig, PolicyConfig
from compass.own import is_own
from compass.rl.advantage import AdvantageConfig
from compass.rl.curriculum import CurriculumConfig
from compass.rl.evaluation.config import EvalConfig
from compass.rl.pack import PackConfig, Selection
from compass.rl.placement.schedule import ScheduleConfig
from compass.rl.zero_variance.dynamic import DynamicSamplingConfig
from compass.rl.zero_variance.stages import ZeroVarianceConfig
from compass.rollouts.config import ReportConfig
from compass.train.correction import CorrectionConfig
from compass.train.optim_config import OptimConfig
from compass.train.policy_loss import PolicyLossConfig, check_loss
from compass.train.terms import KlConfig, LossTerms
from compass.types import Replay


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """Configuration of `recipes/rl.py`."""

    model: str
    """Hugging Face directory of the policy, a checkpoint, the folder of a run (its newest one), or
    the name of a spec for random weights."""
    prompts: Path
    """Prompt file: JSON Lines, JSON or parquet, or a glob. Each row has a conversation or text in
    one of messages/prompt/problem/question, and an answer where its domain needs one."""
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
    loss: str = "espo"
    """Which policy loss: espo, gspo, grpo, dr_grpo, dapo or cispo, with values in the table of that
    name in `losses`; or `path/file.py:function` of your own (docs/extending.md)."""
    metric: tuple[str, ...] = ()
    """Functions of your own, `path/file.py:function`, from the groups of a step to numbers, which
    are logged as `own/*` (docs/extending.md)."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is taken from the loss: above 0 keeps it up."""
    loss_mask_truncated: bool = False
    """Train no rollout that ended at its length limit: DAPO's overlong filter. It still counts in
    its group's statistics, and in the denominators where `pack.denominator` is `all`."""
    replay: Replay = "r3"
    """Expert choices of the update: the rollout's (`r3`), old scores' (`r2`), new ones (`off`)."""
    eval: dict[str, EvalConfig] = field(default_factory=dict)
    """Held-out sets to evaluate on during the run, each a table `[eval.NAME]`."""
    eval_interval: int = 10
    """Steps between evaluations; there is one before the first step too."""
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
    kl: KlConfig = field(default_factory=KlConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "group_size", "eval_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        check_loss(self.loss)
        if self.losses.own and not is_own(self.loss):
            raise UserError(
                f"[losses.own] is for a loss of one's own, but loss={self.loss!r}; give its values "
                f"in [losses.{self.loss}], or name a function with --loss FILE.py:NAME"
            )
        self.pack.check(self.num_prompts_per_step)
        if not math.isfinite(self.entropy_coef):
            raise UserError(f"entropy_coef={self.entropy_coef} must be a finite number")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0, for groups to differ")
        if self.curriculum.enabled and self.dynamic_sampling.max_rounds > 1:
            raise UserError(
                f"dynamic_sampling.max_rounds={self.dynamic_sampling.max_rounds} together with "
                "curriculum.enabled, whose steps would count rounds; use one of the two"
            )

    @property
    def terms(self) -> LossTerms:
        """What is added to the policy loss."""
        return LossTerms(kl_coef=self.kl.coef, entropy_coef=self.entropy_coef)

    @property
    def selection(self) -> Selection:
        """Which rollouts are trained."""
        return Selection(mask_truncated=self.loss_mask_truncated, everything=self.terms.any)
