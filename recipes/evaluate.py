"""Evaluate a model on prompt files: generate, verify, and write `summary.json` and the samples.

    torchrun --nproc-per-node 2 recipes/evaluate.py --model runs/rl/model \\
        --data eval.jsonl --output runs/evaluation --num-samples 4
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from compass.distributed import ParallelConfig, init_topology, launch, raised_together, read_flags
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.gym.pool.pool import PoolConfig
from compass.models.config import PolicyConfig
from compass.rl.evaluation.limits import check_num_samples


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `recipes/evaluate.py`."""

    model: str
    """Hugging Face directory of the policy, a checkpoint, or the folder of a run (its newest)."""
    data: tuple[Path, ...]
    """Prompt files (JSONL); each gets its own line in the summary."""
    output: Path
    """Folder for `summary.json` and `<file name>.samples.jsonl`."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; by default the model's."""
    raw: bool = False
    """Feed prompts as they stand, without the chat template."""
    drop_unjudgeable: bool = False
    """Leave out, and count, prompts that their domain cannot judge; otherwise they are refused."""
    allow_stop_mismatch: bool = False
    """Go on although the chat template ends a turn in none of the stop tokens."""
    num_samples: int = 1
    """Completions of each prompt; pass@k and majority@k are estimated for every k up to it."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 keeps all."""
    max_completion_tokens: int = 1024
    """Longest completion."""
    seed: int = 0
    """Of the sampling noise."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    gym: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_num_samples(self.num_samples)


if __name__ == "__main__":  # mistakes and --help are answered before what takes seconds to import
    config = read_flags(Config, __doc__)

from compass.config import write_resolved
from compass.generate.generator import Generator
from compass.jsonl import write_jsonl
from compass.manifest import write_whole
from compass.models.load import find_model, open_policy
from compass.rl.evaluation.evaluate import evaluate, summarize
from compass.rl.judgeable import load_judgeable
from compass.rl.writer import open_writer
from compass.run.run import require_no_run
from compass.text.tokenizer import Tokenizer, check_stop_tokens
from compass.types import SamplingParams


def main(cfg: Config) -> None:
    """Evaluate every file."""
    topology = init_topology(cfg.parallel)
    cfg = replace(cfg, model=find_model(cfg.model, topology))
    require_no_run(cfg.output, topology)
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    check_stop_tokens(tokenizer, topology.is_main, raw=cfg.raw, unchecked=cfg.allow_stop_mismatch)
    load = partial(load_judgeable, raw=cfg.raw, drop=cfg.drop_unjudgeable, gym=cfg.gym)
    sets = {path.stem: load(path, topology=topology) for path in cfg.data}
    if len(sets) < len(cfg.data):
        names = [path.name for path in cfg.data]
        raise UserError(f"--data {' '.join(names)}: two files share a name; rename one")
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    generator = Generator(policy, cfg.generator, topology)
    sampling = SamplingParams(
        max_completion_tokens=cfg.max_completion_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        stop_token_ids=tokenizer.stop_token_ids,
    )
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    summary = {}
    with open_writer(generator, tokenizer, everything, sampling, cfg.gym) as writer:
        with raised_together(topology):
            if topology.is_main:
                write_resolved(cfg, cfg.output)
        for name, prompts in sets.items():
            samples = evaluate(
                writer, prompts, sampling, num_samples=cfg.num_samples, seed=cfg.seed
            )
            summary[name] = summarize(samples)
            with raised_together(topology):
                if topology.is_main:
                    write_jsonl(cfg.output / f"{name}.samples.jsonl", map(asdict, samples))
                    print(f"{name}: {json.dumps(summary[name])}", flush=True)
    with raised_together(topology):
        if topology.is_main:
            write_whole(cfg.output / "summary.json", json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    launch(lambda: main(config))
