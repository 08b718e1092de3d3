"""One step of a run on tensors without numbers, phase by phase, and the memory that it took.

The policy, its sharding, the trainer, the generator's view, its cache and its runner are the real
ones. Stand-ins are the loss, of which a token keeps a few numbers, decode kernels that read the
cache in place, and the counts of rows that expert-parallel ranks exchange, which are even.

    python -m compass.rl.memory.simulate IN OUT      (pickles: see `compass.rl.memory.plan`)

Shape legend: T packed tokens, R loss tokens, V vocabulary, N query heads, H head width.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from compass.distributed import Topology, build_topology
from compass.generate.attention.decode_backends import DecodeBackend, DecodeTables, GatherDecode
from compass.generate.attention.kv_cache import KVCache
from compass.generate.fp8.view import Fp8View
from compass.generate.model_runner import ModelRunner
from compass.generate.sampling import sample_tokens
from compass.generate.scheduler import Chunk, Sample, Step
from compass.generate.sequence import Group, Request, Sequence
from compass.machine.memory_tracker import MemoryTracker
from compass.means import Means
from compass.models.layers.dispatch import PolicyDispatcher
from compass.models.parallel import PolicyView, full_tensor, local_part, reshard, shard_policy
from compass.models.policy import Policy, build_model, materialize_buffers
from compass.models.specs import ModelSpec
from compass.rl.memory.simulated_device import NAME, SimulatedDevice, WithoutNumbers, fake_world
from compass.rl.memory.workload import Held, RolloutWork, Simulation
from compass.train.loss import LossInputs
from compass.train.trainer import Trainer
from compass.types import Microbatch, SamplingParams


class BalancedDispatcher(PolicyDispatcher):
    """Sends every rank as many rows, and receives `imbalance` times as many: there are no counts
    to go by."""

    def __init__(self, spec: ModelSpec, imbalance: float) -> None:
        super().__init__(PolicyDispatcher.Config(num_experts=spec.num_experts, top_k=spec.top_k))
        self.imbalance = imbalance
        self._num_rows = 0

    def dispatch(self, x_TD: Tensor, *others: Tensor) -> Any:
        """See `PolicyDispatcher`."""
        self._num_rows = len(x_TD) * self.top_k
        return super().dispatch(x_TD, *others)

    def _sync_token_count_exchange(
        self, mine: Tensor, came: Tensor, ep_size: int
    ) -> tuple[Tensor, list[int], list[int]]:
        share, rest = divmod(self._num_rows, ep_size)
        sent = [share + rest, *[share] * (ep_size - 1)]
        return came.reshape(-1), sent, [int(share * self.imbalance)] * ep_size


class _InPlace:
    """What a decode kernel allocates: its result."""

    def __init__(self, cache: KVCache, tables: DecodeTables) -> None:
        pass

    def attend(self, layer: int, q_BNH: Tensor, scale: float) -> Tensor:
        return torch.empty_like(q_BNH)


def simulate(simulation: Simulation, device: torch.device, mode: FakeTensorMode) -> dict[str, Held]:
    """The phases of a step, in order. `device` is simulated, or the CPU with its own branches."""
    work = simulation.workload
    with fake_world(work.world_size):
        topology = build_topology(
            0, work.world_size, device=device, ep=work.ep, dp_replicate=work.dp_replicate
        )
        policy = _sharded(simulation, topology)
        reference = (
            _sharded(simulation, topology).requires_grad_(False) if work.has_reference else None
        )
        with mode, MemoryTracker(device.type) as tracker, WithoutNumbers():
            return _Phases(simulation, topology, tracker).run(policy, reference)


def _sharded(simulation: Simulation, topology: Topology) -> Policy:
    work = simulation.workload
    spec = replace(work.spec, num_layers=simulation.num_layers, dense_layers=())
    policy = build_model(spec)
    for block in policy.blocks:
        block.recompute = work.policy.activation_checkpointing
    _balance(policy, simulation.imbalance)
    shard_policy(policy, topology, work.compute_dtype)
    return policy


def _balance(policy: Policy, imbalance: float) -> None:
    for block in policy.blocks:
        if block.moe is not None:
            dispatcher = BalancedDispatcher(policy.spec, imbalance)
            dispatcher.ep_mesh = block.moe.routed_experts.token_dispatcher.ep_mesh
            block.moe.routed_experts.token_dispatcher = dispatcher


class _Phases:
    """Runs them in the order of `recipes/rl.py`, and remembers what each held."""

    def __init__(self, simulation: Simulation, topology: Topology, tracker: MemoryTracker) -> None:
        self.work = simulation.workload
        self.imbalance = simulation.imbalance
        self.topology = topology
        self.device = topology.device
        self.tracker = tracker
        self.held: dict[str, Held] = {}

    def run(self, policy: Policy, reference: Policy | None) -> dict[str, Held]:
        """Every phase, in the state that a run is in after its first step."""
        with self._phase("load"):
            for model in (policy, reference):
                if model is not None:
                    self._allocate(model)
        for block in (policy.blocks[0], policy.blocks[-1]):
            block.register_forward_hook(lambda *_: self.tracker.mark())
        trainer = Trainer(
            policy,
            self.topology,
            self.work.optim,
            num_steps=10,
            reference=reference,
            entropy_gradient=self.work.entropy_gradient,
        )
        _train(trainer, self._microbatch(policy.spec, 8))
        trainer.step()  # now there are moments
        microbatch = self._microbatch(policy.spec, self.work.tokens_per_microbatch)
        if self.work.rollout is not None:
            with self._phase("rollout"):
                view = self._view(policy)
                _balance(view.model, self.imbalance)
                cache = self._roll_out(view.model, self.work.rollout)
                cache.free()
        if self.work.scores_first:
            with self._phase("old log-probabilities"):
                trainer.score(microbatch)
        with self._phase("update"):
            _train(trainer, microbatch)
            _train(trainer, microbatch)  # finds gradients
            trainer.step()
        with self._phase("checkpoint, export"):
            reshard(policy)
            for parameter in policy.parameters():
                full_tensor(parameter.detach())
        return self.held

    def _allocate(self, model: Policy) -> None:
        model.to_empty(device=self.device)
        materialize_buffers(model, self.device)
        self.tracker.see(*map(local_part, model.parameters()))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        before = self.tracker.current
        self.tracker.restart()
        yield
        self.held[name] = Held(before=before, peaks=(*self.tracker.marked, self.tracker.peak))

    def _microbatch(self, spec: ModelSpec, num_tokens: int) -> Microbatch:
        """`num_tokens` in sequences as long as they come, every token of which carries loss."""
        longest = min(num_tokens, self.work.longest_sequence)
        lengths = [longest] * (num_tokens // longest)
        lengths += [num_tokens % longest] if num_tokens % longest else []
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        numbers = torch.zeros(num_tokens, device=self.device)
        shape = (num_tokens, spec.num_moe_layers, spec.top_k)
        routes = ids.new_zeros(shape, dtype=spec.route_dtype)
        return Microbatch(
            token_ids=ids,
            positions=ids,
            sequence_lengths=tuple(lengths),
            rows=ids,
            targets=ids,
            sequence_ids=ids,
            advantages=numbers,
            weights=numbers[: len(lengths)],
            flat_signs=ids[: len(lengths)],
            rollout_logprobs=numbers,
            routed_experts=routes if spec.num_experts else None,
        )

    def _view(self, policy: Policy) -> PolicyView | Fp8View:
        assert self.work.rollout is not None
        config = self.work.rollout.generator
        if config.weights == "fp8":
            # Every error that is read is 1, and no layer is to be kept for it.
            return Fp8View(policy, self.topology, replace(config.fp8, max_rel_error=2.0))
        view = PolicyView(policy, self.topology)
        view.refresh(policy)
        return view

    def _roll_out(self, model: Policy, rollout: RolloutWork) -> KVCache:
        """The largest steps there can be: a prompt's first chunk, the last chunk of a completion
        that lost its place and is computed again, and one token of every seat."""
        config = rollout.generator
        cache = KVCache(
            model.spec,
            num_blocks=self.work.num_cache_blocks,
            block_size=config.block_size,
            dtype=self.work.kv_dtype,
            device=self.device,
        )
        kernels = self.device.type == NAME and config.attention != "gather"
        backend: DecodeBackend = _InPlace if kernels else GatherDecode
        runner = ModelRunner(model, cache, self.device, backend=backend)
        longest = min(
            rollout.longest_prompt + rollout.max_completion_tokens,
            model.spec.max_seq_len,
            cache.num_blocks * config.block_size,
        )
        chunk = min(config.max_tokens_per_step, longest)
        seats = config.max_num_seqs
        per_seat = min(longest, cache.num_blocks // seats * config.block_size)
        self._step(runner, [_chunk(cache, 0, chunk)])
        self._step(runner, [_chunk(cache, longest - chunk, chunk)])
        self._step(runner, [_chunk(cache, max(0, per_seat - 1), 1)] * seats)
        return cache

    def _step(self, runner: ModelRunner, chunks: list[Chunk]) -> None:
        samples = [Sample(chunk.sequence, i) for i, chunk in enumerate(chunks)]
        logits_RV = runner.step(Step(chunks=chunks, samples=samples, copies=[]), None)
        zeros_R = torch.zeros(len(samples), device=self.device)
        sample_tokens(
            logits_RV,
            temperature_B=zeros_R,
            top_k_B=zeros_R.long(),
            top_p_B=zeros_R.double(),
            uniforms_B=zeros_R.double(),
            truncated=False,
            greedy=False,
        )


def _train(trainer: Trainer, microbatch: Microbatch) -> None:
    trainer.forward_backward(microbatch, _loss, num_rollouts=1, num_tokens=1)


def _loss(inputs: LossInputs) -> tuple[Tensor, Means]:
    """With every term: an entropy without a gradient adds none."""
    return (inputs.logprobs_R * inputs.advantages_R - inputs.entropy_R).sum(), Means()


def _chunk(cache: KVCache, start: int, num_tokens: int) -> Chunk:
    """Of a sequence that has the cache's first blocks."""
    length = start + num_tokens
    request = Request(
        prompt_id="",
        prompt_token_ids=[0] * length,
        num_samples=1,
        sampling=SamplingParams(max_completion_tokens=1),
    )
    sequence = Sequence(
        request, 0, Group(()), arrival=0, seed=0, max_seq_len=length + 1, num_turns=1
    )
    sequence.block_table = list(range(-(-length // cache.block_size)))
    return Chunk(sequence, start, num_tokens)


def main(source: Path, target: Path) -> None:
    """Simulations in, what each phase held out."""
    simulations: list[Simulation] = pickle.loads(source.read_bytes())
    simulated = SimulatedDevice()
    devices = {"cuda": simulated.device, "cpu": torch.device("cpu")}
    with torch.compiler.set_stance("force_eager"):  # there is nothing to compile for
        held = [simulate(s, devices[s.workload.device], simulated.mode) for s in simulations]
    target.write_bytes(pickle.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
