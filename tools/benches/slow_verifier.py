"""A verifier that takes as long as its prompt says, as one does that waits for a sandbox or a
judge. Beside the benchmark that uses it, so that its workers import nothing else."""

from __future__ import annotations

import time

from compass.types import Prompt, Score


def sleep_and_score(prompt: Prompt, completion: str, finished: bool, thinking_open: bool) -> Score:
    """Sleep for `prompt.answer` seconds; right when the text's length is even."""
    seconds = float(prompt.answer or 0)
    started = time.perf_counter()
    time.sleep(seconds)
    return Score(
        verdict=float(len(completion) % 2 == 0),
        reward=float(len(completion) % 2 == 0),
        valid=True,
        reason="",
        breakdown={},
        seconds=time.perf_counter() - started,
    )
