"""Tasksets of the verifiers package (0.4, its v1 API): their prompts, and what their tasks'
`@vf.reward` functions say of an answer.

Importing this imports verifiers, which takes an environment of its own: its pins (openai below 3,
mcp) are not the project's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from compass.errors import UserError
from compass.types import Message

try:
    import verifiers.v1 as vf
except ImportError as error:
    raise UserError(
        f"domain verifiers cannot import its package ({error}); install compass-rl[verifiers] into "
        "an environment of its own"
    ) from None


def rows(taskset: str, config: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The first `size` tasks of a taskset as rows of a prompt file.

    Errors: `UserError` for a taskset that cannot be loaded, or a task that needs more than an
    answer.
    """
    try:
        tasks = list(islice(_taskset(taskset, json.dumps(config)), size))
    except Exception as error:  # whatever a package from outside raises when it loads
        raise UserError(f"taskset {taskset!r} cannot be loaded: {error}") from error
    for task in tasks:
        lack = lacking(task)
        if lack is not None:
            raise UserError(f"task {task.data.idx} of {taskset!r} {lack}; choose another taskset")
        yield {
            "id": f"{taskset}/{task.data.id or task.data.idx}",
            "messages": _messages(task.data),
            "domain": "verifiers",
            "taskset": taskset,
            "taskset_config": dict(config),
            "task": task.data.model_dump(mode="json"),
        }


@lru_cache(maxsize=16)
def _taskset(name: str, config: str) -> Any:
    config_type = vf.taskset_config_type(name)
    return vf.load_taskset(config_type.model_validate({**json.loads(config), "id": name}))


def task_of(row: Mapping[str, Any]) -> Any:
    """The task of a row that `rows` made. Errors: whatever verifiers raises for another one."""
    taskset = _taskset(row["taskset"], json.dumps(row.get("taskset_config") or {}))
    task_type = type(taskset).task_type()
    data = task_type.data_type().model_validate(row["task"])
    return task_type(data, taskset.config.task)


def lacking(task: Any) -> str | None:
    """What a task needs beside an answer, which it does not get here; None when nothing."""
    if task.NEEDS_CONTAINER:
        return "needs a container"
    if type(task).toolsets(task.config):
        return "needs tool servers"
    if task.config.judges:
        return "needs judges, which are models"
    if task.data.prompt is None:
        return "has no prompt of its own"
    rewards = task.hooks("reward")
    needy = [fn.__name__ for fn in rewards if _needs_runtime(fn)]
    if needy:
        return f"has the reward {needy[0]!r}, which needs a runtime"
    return None if rewards else "has no @vf.reward function"


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _messages(data: Any) -> list[Message]:
    given = [("user", data.prompt)] if isinstance(data.prompt, str) else _typed(data.prompt)
    system = [] if data.system_prompt is None else [("system", data.system_prompt)]
    return [{"role": role, "content": content} for role, content in [*system, *given]]


def _typed(messages: Any) -> list[tuple[str, str]]:
    for message in messages:
        if not isinstance(message.content, str):
            raise UserError(f"a prompt has a {message.role} message that is not text")
    return [(message.role, message.content) for message in messages]


def rewarded(task: Any, thinking: str, answer: str) -> tuple[float, dict[str, float]]:
    """The weighted sum of the task's rewards, and each of its rewards and metrics by name.

    Errors: whatever the task's functions raise.
    """
    trace = _trace(task, thinking, answer)
    asyncio.run(task.score(trace))
    parts = {name: one.score for name, one in trace.rewards.items() if one is not None}
    metrics = {name: value for name, value in trace.metrics.items() if value is not None}
    return float(trace.reward), {**metrics, **parts}


def _trace(task: Any, thinking: str, answer: str) -> Any:
    """The conversation as verifiers records it: prompt and answer, each message behind the last."""
    roles = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    before = [roles[one["role"]](content=one["content"]) for one in _messages(task.data)]
    said = vf.AssistantMessage(content=answer, reasoning_content=thinking or None)
    nodes = [
        vf.MessageNode(parent=i - 1 if i else None, message=message, sampled=message is said)
        for i, message in enumerate([*before, said])
    ]
    about = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=about, agent=agent, nodes=nodes, is_completed=True, ok=True)
