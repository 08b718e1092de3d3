"""The generator: requests in, completions out as each one ends.

Continuous batching over a paged KV cache, in the trainer's process, on the trainer's weights. See
`compass.generate.scheduler` for what runs when, and `compass.generate.sampling` for why a
completion does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from compass.distributed import Topology, raised_together
from compass.errors import FailedRunError, UserError
from compass.generate.agreement import agree
from compass.generate.attention.decode_backends import choose_attention
from compass.generate.attention.graphs import use_graphs
from compass.generate.attention.kv_cache import KVCache
from compass.generate.block_manager import BlockManager
from compass.generate.config import GeneratorConfig
from compass.generate.fp8.numbers import E4M3
from compass.generate.fp8.view import Fp8View
from compass.generate.model_runner import make_runner
from compass.generate.sampler import Sampler
from compass.generate.sampling import check_sampling
from compass.generate.scheduler import Scheduler, check_fits
from compass.generate.sequence import Request, Sequence
from compass.models.parallel import PolicyView
from compass.models.policy import Policy
from compass.models.specs import ModelSpec
from compass.types import Completion


class RequestSource(Protocol):
    """Requests that come while others are being written: a group that grows, say."""

    def take(self) -> list[Request]:
        """Those that came since the last call, without waiting."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether more may come, although none has."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait until there may be news, at most `seconds`. Called when there is nothing to decode
        on any rank."""
        ...


class _NoMore:
    """The source of a batch that is complete from the start."""

    is_open = False

    def take(self) -> list[Request]:
        return []

    def wait(self, seconds: float) -> None:
        raise AssertionError("a closed source is never waited for")


MAX_WAIT_SECONDS = 0.02
"""Longest wait for a source before ranks compare notes again: one rank's slow verifier must not
keep another, whose requests have come, from decoding them."""


class Generator:
    """Writes completions with the weights of a policy.

    The weights are the policy's own unsharded parameters or an FP8 copy: after the policy trains,
    `load_weights` before the next `generate`.
    """

    def __init__(
        self,
        policy: Policy,
        config: GeneratorConfig,
        topology: Topology,
        *,
        policy_version: int = 0,
    ) -> None:
        """Collective: it loads the weights of `policy`.

        Raises:
            UserError: the configured KV cache has no block, or attention or CUDA graphs ask for
                what this device or torch does not have.
        """
        self.config = config
        self.topology = topology
        self.policy_version = policy_version
        dtype = E4M3 if config.kv_dtype == "fp8" else policy.compute_dtype
        attention = choose_attention(
            config.attention,
            device=topology.device,
            kv_dtype=dtype,
            block_size=config.block_size,
        )
        cuda_graphs = use_graphs(config.cuda_graphs, policy, attention, topology)
        self.view = _make_view(policy, config, topology)
        self.num_blocks = num_cache_blocks(policy.spec, config, dtype)
        """Blocks of the KV cache that sequences are given."""
        cache = KVCache(
            policy.spec,
            # Decode steps of kernels have rows without a sequence: one more for these.
            num_blocks=self.num_blocks + (attention != "gather"),
            block_size=config.block_size,
            dtype=dtype,
            device=topology.device,
        )
        self.runner = make_runner(
            self.view.model,
            cache,
            topology,
            attention=attention,
            max_num_seqs=config.max_num_seqs,
            cuda_graphs=cuda_graphs,
        )
        self.sampler = Sampler(topology.device)
        self._not_finite: str | None = None
        """Where logits were first not finite."""
        self.num_preemptions = 0
        """Sequences that lost their blocks and were computed again, since construction."""

    def load_weights(self, policy: Policy, policy_version: int) -> None:
        """Take the policy's current weights; completions from now on carry `policy_version`.

        Collective. Not while a `generate` is being iterated.
        """
        self.view.refresh(policy)
        self.runner.follow_weights(self.topology)
        self.policy_version = policy_version

    def fp8_metrics(self) -> dict[str, float]:
        """`fp8/*` of the weights in use; empty when they are the policy's own."""
        return self.view.metrics if isinstance(self.view, Fp8View) else {}

    def check_request(self, request: Request) -> None:
        """Refuse what `generate` would refuse, without running anything.

        Raises:
            UserError: the prompt leaves no room in the context, one sample alone would not fit in
                the KV cache, or the sampling parameters make no sense.
        """
        check_sampling(request.sampling)
        check_fits(
            request,
            num_blocks=self.num_blocks,
            block_size=self.config.block_size,
            max_seq_len=self.view.model.spec.max_seq_len,
        )

    def generate(
        self, requests: Iterable[Request], *, seed: int, source: RequestSource | None = None
    ) -> Iterator[Completion]:
        """Write every sample of `requests`, yielding each completion when it ends, in any order.

        Collective under expert parallelism, where it must be iterated to its end on every rank;
        a rank without requests passes none and takes part.

        Args:
            seed: completions depend on it, on prompt id, sample index and weights, and on nothing
                else.
            source: asked for further requests before every step, until it is closed and all is
                written. They must pass `check_request`.

        Raises:
            UserError: before anything runs, on every rank: a request that can never be served.
        """
        scheduler = Scheduler(
            BlockManager(self.num_blocks, self.config.block_size),
            max_num_seqs=self.config.max_num_seqs,
            max_tokens_per_step=self.config.max_tokens_per_step,
            max_seq_len=self.view.model.spec.max_seq_len,
            seed=seed,
            num_turns=1,
        )
        with raised_together(self.topology):
            for request in requests:
                check_sampling(request.sampling)
                scheduler.add(request)
        return self._run(scheduler, source or _NoMore())

    def require_finite(self) -> None:
        """Make sure that all logits of what has been written were finite. Collective: for when
        `generate` has been iterated to its end on every rank.

        Raises:
            UserError: on every rank, naming prompt and position, of weights that nothing trained.
            FailedRunError: the same, of weights that training has made so.
        """
        found = [found for found in self.topology.all_gather_object(self._not_finite) if found]
        if found and self.policy_version == 0:
            raise UserError(
                f"{found[0]}: the weights are broken, or too large for the compute dtype; give "
                "another checkpoint, or policy.dtype float32"
            )
        if found:
            raise FailedRunError(
                f"{found[0]}, with the weights of step {self.policy_version}: the run diverged; go "
                "on from an earlier checkpoint with a lower optim.lr"
            )

    def _run(self, scheduler: Scheduler, source: RequestSource) -> Iterator[Completion]:
        self.runner.cache.allocate()
        try:
            yield from self._steps(scheduler, source)
        finally:
            self.runner.free_memory()
        self.num_preemptions += scheduler.num_preemptions

    def _steps(self, scheduler: Scheduler, source: RequestSource) -> Iterator[Completion]:
        while True:
            for request in source.take():
                scheduler.add(request)
            step = scheduler.schedule()
            agreed = agree(
                step,
                self.topology,
                has_work=scheduler.has_work,
                source_is_open=source.is_open,
            )
            if not agreed.has_work:
                if not agreed.is_open:
                    break
                if source.is_open:
                    source.wait(MAX_WAIT_SECONDS)
                continue
            logits_RV = self.runner.step(step, agreed.decode)
            sequences = [sample.sequence for sample in step.samples]
            token_ids, logprobs = self.sampler.draw(sequences, logits_RV)
            finished = scheduler.update(step, token_ids, logprobs)
            # Routes are read and blocks given back before the caller gets a turn.
            completions = self._completions(finished)
            for sequence in finished:
                scheduler.release(sequence)
                self._note_not_finite(sequence)
            yield from completions

    def _note_not_finite(self, sequence: Sequence) -> None:
        if self._not_finite is None and sequence.finish_reason == "not_finite":
            self._not_finite = (
                f"prompt {sequence.request.prompt_id!r}, sample {sequence.sample}: the logits for "
                f"position {len(sequence.token_ids) - 1} ({sequence.num_prompt_tokens} of them "
                "prompt) are not finite"
            )

    def _completions(self, finished: list[Sequence]) -> list[Completion]:
        if not finished:
            return []
        routes = self.runner.cache.read_routes(
            [sequence.block_table for sequence in finished],
            [len(sequence.token_ids) - 1 for sequence in finished],
        )
        return [
            Completion(
                prompt_id=sequence.request.prompt_id,
                sample=sequence.sample,
                prompt_token_ids=sequence.request.prompt_token_ids,
                token_ids=sequence.token_ids[sequence.num_prompt_tokens :],
                logprobs=torch.tensor(sequence.logprobs, dtype=torch.float32),
                routed_experts=routed_experts,
                finish_reason=sequence.finish_reason,
                policy_version=self.policy_version,
            )
            for sequence, routed_experts in zip(finished, routes, strict=True)
        ]


def _make_view(policy: Policy, config: GeneratorConfig, topology: Topology) -> PolicyView | Fp8View:
    if config.weights == "fp8":
        return Fp8View(policy, topology, config.fp8)
    view = PolicyView(policy, topology)
    view.refresh(policy)
    return view


def num_cache_blocks(spec: ModelSpec, config: GeneratorConfig, dtype: torch.dtype) -> int:
    """Blocks of the KV cache that `config` asks for.

    Raises:
        UserError: not even one.
    """
    most = config.max_num_seqs * -(-spec.max_seq_len // config.block_size)
    if config.num_blocks is not None:
        num_blocks, source = config.num_blocks, f"generator.num_blocks={config.num_blocks}"
    else:
        per_block = KVCache.bytes_per_block(spec, config.block_size, dtype)
        num_blocks = int(config.kv_cache_gb * 1e9 / per_block)
        source = (
            f"generator.kv_cache_gb={config.kv_cache_gb} (a block takes {per_block / 1e9:.6f} GB)"
        )
    if num_blocks < 1:
        raise UserError(f"{source} leaves no block for the KV cache; raise it")
    return min(num_blocks, most)
