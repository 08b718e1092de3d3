"""The pool returns every submission exactly once, whatever its verifier does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch  # noqa: F401  (so that a worker that inherited anything from us would have it too)

from compass.errors import UserError
from compass.gym.byte_tokenizer import END, byte_tokenizer, write_byte_tokenizer
from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.rewards.config import RewardConfig
from compass.types import Prompt, Score
from tests.gym.pool.pool_verifiers import (
    ExitsOnArrival,
    StallsOnArrival,
    behave,
    echo,
    start_a_child_and_hang,
)

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "?"},), answer="1")
ONE = PoolConfig(num_workers=1)


def scores_of(config: PoolConfig, behaviours: list[str]) -> list[Score]:
    with VerifierPool(config, verify=behave) as pool:
        for index, behaviour in enumerate(behaviours):
            pool.submit_text(index, PROMPT, behaviour, finished=True)
        scores = dict(pool.drain())
    assert sorted(scores, key=str) == sorted(range(len(behaviours)), key=str)
    return [scores[index] for index in range(len(behaviours))]


def test_a_worker_outlives_the_signals_that_ask_a_run_to_end() -> None:
    """They reach every process of a group, and the step at hand is still to be scored."""
    with VerifierPool(ONE, verify=behave) as pool:
        pool.submit_text("before", PROMPT, "right", finished=True)
        pool.drain()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool._workers[0].process._process.pid, number)
        pool.submit_text("after", PROMPT, "right", finished=True)
        ((_, score),) = pool.drain()
    assert score.valid


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("spin", "timeout after 1 s"),
        ("hang in C", "timeout after 1 s"),
        ("exit", "crash: verifier exited with code 3"),
        ("exit 0", "crash: verifier exited with code 0"),
        ("segfault", "crash: verifier was killed by SIGSEGV"),
        ("raise", "crash: ValueError: boom"),
        ("not a score", "crash: TypeError: the verifier returned NoneType, not Score"),
        ("exhaust memory", "crash: MemoryError"),
    ],
)
def test_broken_verifier_costs_its_own_job_only(behaviour: str, reason: str) -> None:
    config = PoolConfig(num_workers=1, timeout_seconds=1.0)
    before, broken, after = scores_of(config, ["right", behaviour, "right"])
    assert (broken.valid, broken.reason.rstrip(": ")) == (False, reason)
    assert before.valid
    assert before.verdict == 1.0
    assert after.valid
    assert after.verdict == 1.0


@pytest.mark.parametrize("behaviour", ["unpicklable", "close every pipe"])
def test_result_that_cannot_be_sent_is_a_crash(behaviour: str) -> None:
    broken, after = scores_of(ONE, [behaviour, "right"])
    assert not broken.valid
    assert broken.reason.startswith("crash: ")
    assert after.verdict == 1.0


def test_token_ids_are_decoded_without_the_one_stop_token_that_ended_them(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = byte_tokenizer()
    stop = tokenizer.token_to_id(END)
    written = tokenizer.encode("<think>1+1=2</think>สอง").ids
    with VerifierPool(
        ONE, verify=echo, tokenizer_directory=tmp_path, stop_token_ids=[stop]
    ) as pool:
        pool.submit("stopped", PROMPT, [*written, stop], finished=True)
        pool.submit("cut", PROMPT, written, finished=False)
        pool.submit("twice", PROMPT, [*written, stop, stop], finished=True)
        pool.submit("empty", PROMPT, [], finished=False)
        pool.submit("thinking", PROMPT, written, finished=False, thinking_open=True)
        pool.submit_text("text", PROMPT, "hm", finished=False, thinking_open=True)
        scores = dict(pool.drain())
    opened = {key for key, score in scores.items() if score.breakdown["thinking_open"]}
    assert opened == {"thinking", "text"}
    heard = {key: (score.reason, bool(score.verdict)) for key, score in scores.items()}
    text = "<think>1+1=2</think>สอง"
    assert heard == {
        "stopped": (text, True),
        "cut": (text, False),
        "twice": (text + END, True),
        "empty": ("", False),
        "thinking": (text, False),
        "text": ("hm", False),
    }


def test_time_limit_counts_from_the_start_of_a_job() -> None:
    config = PoolConfig(num_workers=1, timeout_seconds=2.0)
    started = time.monotonic()
    scores = scores_of(config, ["0.7 seconds"] * 4)
    assert time.monotonic() - started > config.timeout_seconds  # the last one waited that long
    assert all(score.valid for score in scores)


def test_as_many_jobs_run_at_once_as_there_are_workers() -> None:
    config = PoolConfig(num_workers=3, timeout_seconds=3600.0)
    with VerifierPool(config, verify=behave) as pool:
        for key, behaviour in enumerate(["spin", "spin", "right", "wrong"]):
            pool.submit_text(key, PROMPT, behaviour, finished=True)
        scores: dict = {}
        while len(scores) < 2:  # two workers never come back
            pool.wait(60.0)
            scores |= pool.poll()
    assert {key: score.verdict for key, score in scores.items()} == {2: 1.0, 3: 0.0}


def test_what_a_hung_verifier_started_is_killed_with_it(tmp_path: Path) -> None:
    config = PoolConfig(num_workers=1, timeout_seconds=1.0)
    with VerifierPool(config, verify=start_a_child_and_hang) as pool:
        pool.submit_text("a", PROMPT, str(tmp_path / "pid"), finished=True)
        [(_, score)] = pool.drain()
    assert score.reason == "timeout after 1 s"
    status = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone altogether
        while status.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)  # the kernel has yet to act on the signal


def test_poll_returns_without_waiting_and_drain_waits() -> None:
    with VerifierPool(PoolConfig(num_workers=1, timeout_seconds=1.0), verify=behave) as pool:
        assert pool.poll() == []
        assert pool.drain() == []
        pool.submit_text("a", PROMPT, "spin", finished=True)
        assert pool.poll() == []
        assert [key for key, _ in pool.drain()] == ["a"]
        assert pool.drain() == []


def test_submit_waits_while_max_pending_are_unscored() -> None:
    config = PoolConfig(num_workers=1, timeout_seconds=1.0, max_pending=1)
    with VerifierPool(config, verify=behave) as pool:
        pool.submit_text("slow", PROMPT, "spin", finished=True)
        pool.submit_text("next", PROMPT, "right", finished=True)
        assert "slow" in [key for key, _ in pool.poll()]


def test_close_does_not_wait_for_a_hanging_job() -> None:
    config = PoolConfig(num_workers=1, timeout_seconds=3600.0)
    with VerifierPool(config, verify=behave) as pool:
        pool.submit_text("a", PROMPT, "spin", finished=True)
        started = time.monotonic()
    assert time.monotonic() - started < 60
    pool.close()


def test_worker_killed_while_idle_is_replaced() -> None:
    with VerifierPool(ONE, verify=behave) as pool:
        for _ in range(5):
            pool.submit_text("pid", PROMPT, "pid", finished=True)
            [(_, score)] = pool.drain()
            assert score.valid
            pid = int(score.breakdown["pid"])
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # the pool noticed first
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_workers_do_not_import_torch() -> None:
    assert "torch" in sys.modules
    [score] = scores_of(ONE, ["torch"])
    assert score.verdict == 0.0


def test_what_a_verifier_prints_stays_off_our_console(capfd: pytest.CaptureFixture[str]) -> None:
    [score] = scores_of(ONE, ["print"])
    assert score.valid
    assert "shouting" not in capfd.readouterr().out


def test_start_up_failure_is_raised_in_the_parent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        VerifierPool(ONE, tokenizer_directory=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        VerifierPool(ONE, tokenizer_directory=tmp_path)
    with pytest.raises(RuntimeError, match="exited with code 7 while starting"):
        VerifierPool(ONE, verify=ExitsOnArrival())
    with pytest.raises(RuntimeError, match="not ready after 1 s"):
        VerifierPool(PoolConfig(num_workers=1, startup_seconds=1.0), verify=StallsOnArrival())


def test_replacement_that_cannot_start_is_raised_not_waited_for(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    with VerifierPool(ONE, verify=behave, tokenizer_directory=tmp_path / "tokenizer") as pool:
        shutil.rmtree(tmp_path / "tokenizer")
        pool.submit_text("a", PROMPT, "exit", finished=True)
        pool.submit_text("b", PROMPT, "right", finished=True)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            pool.drain()
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            pool.submit_text("c", PROMPT, "right", finished=True)


def test_workers_leave_when_the_parent_is_killed() -> None:
    script = """
import sys
from tests.gym.pool.test_pool import PROMPT, PoolConfig, VerifierPool, behave
pool = VerifierPool(PoolConfig(num_workers=2, timeout_seconds=1.0), verify=behave)
pool.submit_text("a", PROMPT, "announce and hang", finished=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stderr is not None
    assert parent.stderr.readline() == b"hanging\n"
    parent.kill()
    # Workers share the parent's stderr: it ends when the last has left, be it idle or hanging.
    parent.communicate(timeout=60)
    assert parent.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "field", ["num_workers", "max_pending", "timeout_seconds", "max_memory_gb", "startup_seconds"]
)
def test_config_refuses_what_cannot_work(field: str) -> None:
    with pytest.raises(UserError, match=field):
        PoolConfig(**{field: 0})


def test_unknown_domain_is_refused_before_a_worker_starts() -> None:
    with pytest.raises(UserError, match=r"'alchemy'.*chain, .*code, .*math, reasoning_gym"):
        VerifierPool(ONE, domains=["alchemy"])


GROUP_REWARD = """
import os, time

def f(completions, answer):
    said = [c[0]["content"] for c in completions]
    if "spin" in said:
        time.sleep(60)
    if "exit" in said:
        os._exit(3)
    return [text.count("a") / len(said) for text in said]
"""


def test_groups_come_back_with_their_rewards_or_the_reason_why_not(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(GROUP_REWARD)
    reward = RewardConfig(fn=f"{tmp_path}/own.py:f", replaces=True)
    config = PoolConfig(num_workers=2, timeout_seconds=1.0, rewards={"own": reward})
    groups = {"well": ["a", "aab"], "slow": ["a", "spin"], "dead": ["exit"]}
    with VerifierPool(config) as pool:
        assert pool.looks_at_groups("math")
        for name, texts in groups.items():
            for index, text in enumerate(texts):
                pool.submit_text((name, index), PROMPT, text, finished=True)
        alone = dict(pool.drain())
        for name, texts in groups.items():
            pool.submit_group(name, PROMPT, texts, [alone[name, i] for i in range(len(texts))])
        found = dict(pool.drain_groups())
    assert [s.reward for s in found["well"]] == [0.5, 1.0]
    assert [s.reason for s in found["slow"]] == ["timeout after 1 s"] * 2
    assert [s.reason for s in found["dead"]] == ["crash: verifier exited with code 3"]


def test_a_pool_without_a_function_of_lists_looks_at_no_group() -> None:
    with VerifierPool(ONE, verify=behave) as pool:
        assert not pool.looks_at_groups("math")
