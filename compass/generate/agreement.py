"""What ranks that share experts settle before each step.

Every layer of a step exchanges tokens with the experts of other ranks: all step together, whoever
has something to feed, in steps of one kind, and stop together. Ranks that share no experts know
nothing of each other.
"""

from __future__ import annotations

from typing import NamedTuple

from compass.distributed import Topology
from compass.generate.attention.graphs import GraphShape
from compass.generate.scheduler import Step


class Agreement(NamedTuple):
    """The same on all ranks that share experts."""

    has_work: bool
    """Somebody has tokens to feed in this step."""
    is_open: bool
    """Somebody's source of requests is."""
    decode: GraphShape | None
    """When everybody feeds single tokens only: what holds each rank's step."""


def agree(step: Step, topology: Topology, *, has_work: bool, source_is_open: bool) -> Agreement:
    """Collective over the ranks that share experts; without others nothing is exchanged."""
    num_rows = len(step.chunks)
    longest = max((chunk.start + chunk.num_tokens for chunk in step.chunks), default=0)
    prompts = any(chunk.num_tokens > 1 for chunk in step.chunks)
    most_rows, max_length, any_prompts, work, is_open = topology.max_over_ep(
        [num_rows, longest, prompts, has_work, source_is_open]
    )
    return Agreement(
        has_work=bool(work),
        is_open=bool(is_open),
        decode=None if any_prompts else GraphShape(num_rows=most_rows, max_length=max_length),
    )
