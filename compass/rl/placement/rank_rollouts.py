"""What one rank wrote in a step."""

from __future__ import annotations

import time
from collections.abc import Iterator

from compass.types import RolloutTokens


class RankRollouts:
    """Per-token data of the rollouts that a rank wrote in a step, by slot, and when each ended.

    Tokens, log-probabilities and routes stay here until it is known which rank trains them; a
    `Rollout` names the rank and the slot.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.end_seconds: list[float] = []
        """When each rollout of the last round ended, since the round began."""
        self.verifier_seconds = 0.0
        """Wall time of this rank's verifiers, summed over what they scored."""
        self._tokens: list[RolloutTokens] = []
        self._began = time.perf_counter()

    def begin_round(self) -> None:
        """Count seconds from now. Slots go on."""
        self.end_seconds = []
        self._began = time.perf_counter()

    def add(self, tokens: RolloutTokens) -> int:
        """Keep the tokens of a rollout that has just ended; returns their slot."""
        self.end_seconds.append(time.perf_counter() - self._began)
        self._tokens.append(tokens)
        return len(self._tokens) - 1

    def __getitem__(self, slot: int) -> RolloutTokens:
        return self._tokens[slot]

    def __iter__(self) -> Iterator[RolloutTokens]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)
