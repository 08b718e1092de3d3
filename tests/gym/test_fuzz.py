"""Ten thousand broken completions of each domain: every one gets a verdict, and nothing is left
behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.reward import DOMAINS
from compass.gym.sandbox.supply import SandboxConfig
from tests.gym.fuzzed_completions import GOLDS, fuzzed

NUMBER = 10_000
_PR_SET_CHILD_SUBREAPER = 36


def living() -> set[str]:
    """Processes below this one, orphans included: it is their reaper while a test runs."""
    found = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it ended meanwhile
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                found |= {pid} if state != "Z" else set()
    return found


def surroundings() -> tuple[set[str], str]:
    """Processes and mounts."""
    return living(), Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = surroundings()
    yield
    deadline = time.monotonic() + 2  # for what was killed to end
    while (after := surroundings()) != before and time.monotonic() < deadline:
        os.sched_yield()
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_all_domains_are_fuzzed() -> None:
    """But the one whose verdicts are another package's."""
    assert GOLDS.keys() == DOMAINS.keys() - {"verifiers"}


@pytest.mark.long
@pytest.mark.usefixtures("_nothing_is_left")
@pytest.mark.parametrize("domain", GOLDS)
def test_every_completion_gets_a_verdict(domain: str) -> None:
    completions = list(fuzzed(list(GOLDS[domain]()), NUMBER, seed=0))
    config = PoolConfig(num_workers=2, sandbox=SandboxConfig(test_seconds=1.0))
    broken: Counter[str] = Counter()
    right = 0
    with VerifierPool(config, domains=[domain]) as pool:
        for number, (prompt, completion) in enumerate(completions):
            pool.submit_text(number, prompt, completion, finished=number % 2 == 0)
        scores = dict(pool.drain())
    assert scores.keys() == set(range(NUMBER))
    for number, score in scores.items():
        assert 0 <= score.verdict <= 1
        right += score.verdict == 1
        if not score.valid:
            broken[f"{score.reason} {completions[number][1][:300]!r}"] += 1
    assert not broken, broken.most_common(5)
    assert 0 < right < NUMBER / 2, "fuzzing leaves some right, and breaks most"
