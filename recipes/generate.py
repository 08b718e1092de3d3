"""Generate completions for a prompt file, one JSON line per sample.

    torchrun --nproc-per-node 2 recipes/generate.py --model DIR --prompts prompts.jsonl \\
        --output completions.jsonl --temperature 0 --max-completion-tokens 256
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compass.distributed import ParallelConfig, init_topology, launch, raised_together, read_flags
from compass.errors import UserError
from compass.generate.config import GeneratorConfig
from compass.models.config import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of `recipes/generate.py`."""

    model: str
    """Hugging Face directory of the policy, a checkpoint, the folder of a run (its newest one), or
    the name of a spec for random weights."""
    prompts: Path
    """Prompt file (JSONL)."""
    output: Path
    """File to write: lines of id, sample, text, token_ids, logprobs, finish_reason."""
    tokenizer: Path | None = None
    """Directory with tokenizer.json; by default the model's."""
    raw: bool = False
    """Feed prompts as they stand, without the chat template."""
    allow_stop_mismatch: bool = False
    """Go on although the chat template ends a turn in none of the stop tokens."""
    num_samples: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 keeps all."""
    max_completion_tokens: int = 1024
    """Longest completion."""
    seed: int = 0
    """Of the sampling noise: the same seed, prompt id and sample index write the same text."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num_samples={self.num_samples} must be at least 1")


if __name__ == "__main__":  # mistakes and --help are answered before what takes seconds to import
    config = read_flags(Config, __doc__)

from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.gym.datasets import load_prompts
from compass.jsonl import write_jsonl
from compass.models.load import find_model, open_policy
from compass.rl.encoded_prompts import check_prompts
from compass.rl.sampler import rank_share
from compass.text.tokenizer import Tokenizer, check_stop_tokens
from compass.types import Completion, SamplingParams


def main(cfg: Config) -> None:
    """Generate, then write all lines at once, in the order of the prompt file."""
    topology = init_topology(cfg.parallel)
    cfg = replace(cfg, model=find_model(cfg.model, topology))
    if not cfg.output.parent.is_dir():  # found out now, not when everything is generated
        raise UserError(f"--output {cfg.output}: no folder {cfg.output.parent}; make it first")
    tokenizer = Tokenizer.from_dir(cfg.tokenizer or cfg.model)
    check_stop_tokens(tokenizer, topology.is_main, raw=cfg.raw, unchecked=cfg.allow_stop_mismatch)
    prompts = load_prompts(cfg.prompts, raw=cfg.raw)
    policy = open_policy(cfg.model, tokenizer, topology, cfg.policy, seed=cfg.seed)
    generator = Generator(policy, cfg.generator, topology)
    sampling = SamplingParams(
        max_completion_tokens=cfg.max_completion_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        stop_token_ids=tokenizer.stop_token_ids,
    )
    encoded = check_prompts(generator, tokenizer, prompts, sampling)
    requests = [
        Request(
            prompt_id=prompt.id,
            prompt_token_ids=encoded.of(prompt),
            num_samples=cfg.num_samples,
            sampling=sampling,
        )
        for prompt in rank_share(prompts, topology.rank, topology.world_size)
    ]
    lines = [line_of(c, tokenizer) for c in generator.generate(requests, seed=cfg.seed)]
    generator.require_finite()
    gathered = [line for share in topology.all_gather_object(lines) for line in share]
    with raised_together(topology):
        if topology.is_main:
            place = {prompt.id: i for i, prompt in enumerate(prompts)}
            write_jsonl(cfg.output, sorted(gathered, key=lambda x: (place[x["id"]], x["sample"])))


def line_of(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON object of one sample."""
    return {
        "id": completion.prompt_id,
        "sample": completion.sample,
        "text": tokenizer.decode_completion(completion.token_ids),
        "token_ids": list(completion.token_ids),
        "logprobs": completion.logprobs.tolist(),
        "finish_reason": completion.finish_reason,
    }


if __name__ == "__main__":
    launch(lambda: main(config))
