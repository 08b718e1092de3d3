"""Random histories of submissions, polls and drains: nothing is lost, doubled or mislabelled."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.types import Prompt, Score
from tests.gym.pool.pool_verifiers import behave

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "?"},))

EXPECTED = {
    "right": (True, ""),
    "wrong": (True, ""),
    "spin": (False, "timeout after 0.8 s"),
    "exit": (False, "crash: verifier exited with code 3"),
    "segfault": (False, "crash: verifier was killed by SIGSEGV"),
    "raise": (False, "crash: ValueError: boom"),
}


class PoolHistory(RuleBasedStateMachine):
    """The model is the set of submissions that have not come back yet."""

    @initialize(num_workers=st.integers(1, 3), max_pending=st.sampled_from([2, 100]))
    def start(self, num_workers: int, max_pending: int) -> None:
        config = PoolConfig(num_workers=num_workers, max_pending=max_pending, timeout_seconds=0.8)
        self.pool = VerifierPool(config, verify=behave)
        self.outstanding: dict[int, str] = {}
        self.num_submitted = 0

    @precondition(lambda self: self.num_submitted < 8)
    @rule(behaviours=st.lists(st.sampled_from(sorted(EXPECTED)), min_size=1, max_size=4))
    def submit(self, behaviours: list[str]) -> None:
        for behaviour in behaviours:
            self.outstanding[self.num_submitted] = behaviour
            self.pool.submit_text(self.num_submitted, PROMPT, behaviour, finished=True)
            self.num_submitted += 1

    @rule()
    def poll(self) -> None:
        for key, score in self.pool.poll():
            self.settle(key, score)

    @rule()
    def drain(self) -> None:
        for key, score in self.pool.drain():
            self.settle(key, score)
        assert not self.outstanding

    def settle(self, key: object, score: Score) -> None:
        behaviour = self.outstanding.pop(key)  # type: ignore[call-overload]  # KeyError: came twice
        assert (score.valid, score.reason) == EXPECTED[behaviour]
        assert score.verdict == float(behaviour == "right")

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.drain()
            self.pool.close()


TestPoolHistory = PoolHistory.TestCase
TestPoolHistory.settings = settings(
    max_examples=12, stateful_step_count=6, deadline=None, suppress_health_check=list(HealthCheck)
)
