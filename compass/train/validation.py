"""The loss on held-out conversations, between steps of training."""

from __future__ import annotations

from collections.abc import Sequence

from compass.bins import first_fit_decreasing
from compass.distributed import Topology
from compass.errors import UserError
from compass.means import Means
from compass.train.data import SftExample, pack_sft
from compass.train.trainer import Trainer


class Validation:
    """Held-out examples, dealt to ranks and packed once.

    Raises:
        UserError: an example does not fit a microbatch.
    """

    def __init__(
        self, examples: Sequence[SftExample], topology: Topology, max_tokens_per_microbatch: int
    ) -> None:
        self._topology = topology
        lengths = [example.num_fed_tokens for example in examples]
        if max(lengths, default=0) > max_tokens_per_microbatch:
            raise UserError(
                f"the longest validation example feeds {max(lengths)} tokens, more than "
                f"max_tokens_per_microbatch {max_tokens_per_microbatch}: raise it, or lower max_len"
            )
        by_rank = [
            first_fit_decreasing(
                range(rank, len(examples), topology.world_size), lengths, max_tokens_per_microbatch
            )
            for rank in range(topology.world_size)
        ]
        own = by_rank[topology.rank]
        self._counted = [pack_sft([examples[i] for i in members]) for members in own]
        num_passes = max(map(len, by_rank))
        self._uncounted = [pack_sft(examples[:1]) for _ in range(num_passes - len(own))]
        """Every pass is collective: a rank with fewer examples runs one more often, for nothing."""

    def loss(self, trainer: Trainer) -> dict[str, float]:
        """`eval/loss`: nats per loss token, a mean over those of all ranks, under the weights as
        they are. No gradient is touched. Collective."""
        means = Means()
        for microbatch in self._counted:
            scores, _ = trainer.score(microbatch)
            means.add_values("eval/loss", -scores.logprobs)
        for microbatch in self._uncounted:
            trainer.score(microbatch)
        return means.reduce(self._topology)
