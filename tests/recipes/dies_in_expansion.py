"""recipes/rl.py, killed in the middle of a rollout: `dies_in_expansion.py N FLAGS...` dies when the
N-th group of this rank has just been asked to grow. Not a test."""

from __future__ import annotations

import os
import signal
import sys

from compass.config import parse
from compass.rl.config import RlConfig
from compass.rl.zero_variance.growth import Growth
from compass.types import RolloutGroup
from recipes.rl import main

further = Growth.further
left = int(sys.argv[1])


def grow_and_die(self: Growth, group: RolloutGroup) -> int:
    global left
    added = further(self, group)
    left -= added > 0
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return added


if __name__ == "__main__":
    Growth.further = grow_and_die  # type: ignore[method-assign]
    main(parse(RlConfig, sys.argv[2:], description=""))
