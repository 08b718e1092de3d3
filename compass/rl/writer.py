"""What a rank rolls out with: generator, verifiers, encoded prompts, and mail to other ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compass.distributed import Topology
from compass.generate.generator import Generator
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.mailbox import Mailbox
from compass.rl.encoded_prompts import EncodedPrompts, check_prompts
from compass.text.tokenizer import Tokenizer
from compass.types import Prompt, SamplingParams


@dataclass(frozen=True, kw_only=True)
class RolloutWriter:
    """Writes completions and has them scored. Built by `open_writer`."""

    generator: Generator
    pool: VerifierPool
    encoded: EncodedPrompts
    mailbox: Mailbox
    sampling: SamplingParams

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the prompts, and of what is written."""
        return self.encoded.tokenizer

    @property
    def topology(self) -> Topology:
        """Of the ranks that write together."""
        return self.generator.topology


@contextmanager
def open_writer(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    gym: PoolConfig,
) -> Iterator[RolloutWriter]:
    """A writer for `prompts` and no others, whose verifiers run until the block ends.

    Raises:
        UserError: what `check_prompts` refuses, or verifiers that cannot start.
    """
    encoded = check_prompts(generator, tokenizer, prompts, sampling)
    with VerifierPool(
        gym,
        domains={prompt.domain for prompt in prompts},
        tokenizer_directory=tokenizer.source,
        stop_token_ids=tokenizer.stop_token_ids,
    ) as pool:
        yield RolloutWriter(
            generator=generator,
            pool=pool,
            encoded=encoded,
            mailbox=Mailbox(generator.topology),
            sampling=sampling,
        )
