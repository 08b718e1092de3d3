"""The part of verifiers 0.4's v1 API that is used, with its names and meanings."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict


class SystemMessage(BaseModel):
    role: Literal["system"] = "system"
    content: str


class UserMessage(BaseModel):
    role: Literal["user"] = "user"
    content: str


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None


class TaskData(BaseModel):
    model_config = ConfigDict(frozen=True)
    idx: int | None = None
    id: str | None = None
    prompt: str | list[SystemMessage | UserMessage] | None = None
    system_prompt: str | None = None


class TaskConfig(BaseModel):
    judges: list[Any] = []


class TasksetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str = ""
    task: TaskConfig = TaskConfig()


class State(BaseModel):
    pass


class AgentConfig(BaseModel):
    pass


class AgentInfo(BaseModel):
    config: AgentConfig


class TraceTask(BaseModel):
    type: str
    data: Any
    key: str | None = None
    hash: str | None = None


class MessageNode(BaseModel):
    parent: int | None = None
    message: SystemMessage | UserMessage | AssistantMessage
    sampled: bool = False


class Reward(BaseModel):
    score: float
    weight: float = 1.0


class Trace(BaseModel):
    task: TraceTask
    agent: AgentInfo
    nodes: list[MessageNode] = []
    rewards: dict[str, Reward | None] = {}
    metrics: dict[str, float | None] = {}
    is_completed: bool = False
    ok: bool = False

    @property
    def last_reply(self) -> str:
        said = [one.message for one in self.nodes if one.message.role == "assistant"]
        return (said[-1].content or "").strip() if said else ""

    @property
    def reward(self) -> float:
        return sum(one.score * one.weight for one in self.rewards.values() if one)


def reward(function: Any = None, weight: float = 1.0) -> Any:
    return _mark("reward", function, weight)


def metric(function: Any = None) -> Any:
    return _mark("metric", function, 1.0)


def _mark(kind: str, function: Any, weight: float) -> Any:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, kind, True)
        function._vf_weight = weight  # type: ignore[attr-defined]
        return function

    return decorate if function is None else decorate(function)


DataT, StateT, ConfigT = TypeVar("DataT"), TypeVar("StateT"), TypeVar("ConfigT")


class Task(Generic[DataT, StateT, ConfigT]):
    NEEDS_CONTAINER: ClassVar[bool] = False
    key = hash = None

    def __init__(self, data: Any, config: Any = None) -> None:
        self.data, self.config = data, config or TaskConfig()

    @classmethod
    def data_type(cls) -> Any:
        return _argument(cls, TaskData)

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return []

    def with_data(self, **update: Any) -> Any:
        clone = copy.copy(self)
        clone.data = self.data.model_copy(update=update)
        return clone

    def hooks(self, kind: str) -> list[Callable[..., Any]]:
        named = [getattr(self, name) for name in sorted(dir(type(self)))]
        return [function for function in named if callable(function) and hasattr(function, kind)]

    async def score(self, trace: Trace, runtime: Any = None) -> None:
        for kind in ("metric", "reward"):
            for function in self.hooks(kind):
                known = {"task": self.data, "trace": trace}
                takes = inspect.signature(function).parameters
                value = await function(**{k: v for k, v in known.items() if k in takes})
                one = Reward(score=value, weight=function._vf_weight)  # type: ignore[attr-defined]
                if kind == "reward":
                    trace.rewards[function.__name__] = one
                else:
                    trace.metrics[function.__name__] = value


TaskT = TypeVar("TaskT")


class Taskset(Generic[TaskT, ConfigT]):
    def __init__(self, config: Any) -> None:
        self.config = config

    def load(self) -> Iterable[Any]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return (task.with_data(idx=idx) for idx, task in enumerate(self.load()))

    @classmethod
    def task_type(cls) -> Any:
        return _argument(cls, Task)


def _argument(cls: type, base: type) -> Any:
    given = [one for b in cls.__orig_bases__ for one in get_args(b)]  # type: ignore[attr-defined]
    return next(one for one in given if issubclass(one, base))


def _taskset_class(name: str) -> Any:
    module = importlib.import_module(name.rsplit("/", 1)[-1].split("@")[0].replace("-", "_"))
    return getattr(module, module.__all__[0])


def taskset_config_type(name: str) -> Any:
    return _argument(_taskset_class(name), TasksetConfig)


def load_taskset(config: Any) -> Any:
    return _taskset_class(config.id)(config)
