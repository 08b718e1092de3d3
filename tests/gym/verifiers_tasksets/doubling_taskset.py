"""A taskset as its users write them. Not a test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import verifiers.v1 as vf

__all__ = ["DoublingTaskset"]


class DoublingData(vf.TaskData):
    answer: str


class DoublingTask(vf.Task[DoublingData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.8)
    async def right(self, trace: Any) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.2)
    async def terse(self, task: Any, trace: Any) -> float:
        assert trace.last_reply != "crash"
        return float(len(trace.last_reply) <= len(task.answer))

    @vf.metric
    async def thought(self, trace: Any) -> float:
        return float(len(trace.nodes[-1].message.reasoning_content or ""))


class NeedyTask(DoublingTask):
    NEEDS_CONTAINER = True


class DoublingConfig(vf.TasksetConfig):
    first: int = 1
    needy: bool = False


class DoublingTaskset(vf.Taskset[DoublingTask, DoublingConfig]):
    def load(self) -> Iterable[DoublingTask]:
        task = NeedyTask if self.config.needy else DoublingTask
        for number in range(self.config.first, self.config.first + 5):
            prompt = f"Twice {number}?"
            data = DoublingData(prompt=prompt, system_prompt="Terse.", answer=str(2 * number))
            yield task(data, self.config.task)
