"""Advantages and metrics of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from compass.distributed import Topology, raised_together
from compass.errors import UserError
from compass.own import bind_values, is_finite_number, load_function, own_file, place_of, what_of
from compass.rl.advantage import AdvantageConfig, Rewards, group_advantages, is_flat
from compass.types import RolloutGroup

Advantages = Callable[[Sequence[RolloutGroup], Sequence[Rewards]], list[list[float]]]
"""Groups at home and their rewards -> one advantage for each rollout. Collective."""


def open_advantages(cfg: AdvantageConfig, topology: Topology) -> Advantages:
    """How a run makes advantages of rewards: `group_advantages`, or a function of its own.

    Raises:
        UserError: the function does not import, or has another signature.
    """
    if cfg.fn is None:
        return lambda groups, rewards: group_advantages(groups, rewards, cfg)
    name = cfg.fn
    function = bind_values(
        name, load_function(name), cfg.own, takes=("group", "rewards"), table="advantage.own"
    )

    def advantages(groups: Sequence[RolloutGroup], rewards: Sequence[Rewards]) -> list[list[float]]:
        made: list[list[float]] = []
        with raised_together(topology):
            for group, of_group in zip(groups, rewards, strict=True):
                if is_flat(of_group):
                    made.append([0.0] * len(of_group))
                else:
                    returned = _called(name, function, group, list(of_group))
                    made.append(_checked(returned, of_group, name))
        return made

    return advantages


def open_metrics(names: Sequence[str], topology: Topology) -> Callable[..., dict[str, float]]:
    """What a run logs of its own: groups at home -> `own/NAME` of the whole step. Collective; the
    functions are called on the first rank with the groups of all.

    Raises:
        UserError: a function does not import, or has another signature.
    """
    functions = {
        name: bind_values(name, load_function(name), {}, takes=("groups",), table="metric")
        for name in names
    }

    def metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
        if not functions:
            return {}
        by_rank = topology.all_gather_object(list(groups))
        numbers: dict[str, float] = {}
        with raised_together(topology):
            if topology.is_main:
                everything = [group for of_rank in by_rank for group in of_rank]
                for name, function in functions.items():
                    own = _named(_called(name, function, everything), name)
                    if twice := numbers.keys() & own.keys():
                        raise UserError(f"two metrics are called {sorted(twice)}; rename one")
                    numbers |= own
        return topology.all_gather_object(numbers)[0]

    return metrics


def _called(name: str, function: Callable[..., object], *arguments: object) -> object:
    """What a function of the user's own returns; what it raises is the user's to mend."""
    try:
        return function(*arguments)
    except Exception as error:
        place = place_of(error, own_file(name))
        raise UserError(f"{place}: {what_of(error)}; mend {name}") from None


def _checked(advantages: object, rewards: Rewards, name: str) -> list[float]:
    if not isinstance(advantages, list | tuple) or len(advantages) != len(rewards):
        raise UserError(
            f"{name} returns {advantages!r} for {len(rewards)} rewards; it must return a list of "
            "as many numbers"
        )
    numbers = [_number(value, name) for value in advantages]
    # A rollout without a verdict teaches nothing, whatever its group says.
    return [0.0 if r is None else a for a, r in zip(numbers, rewards, strict=True)]


def _named(numbers: object, name: str) -> dict[str, float]:
    if not isinstance(numbers, Mapping):
        raise UserError(f"{name} returns {numbers!r}; it must return a dict of numbers by name")
    return {f"own/{key}": _number(value, name) for key, value in numbers.items()}


def _number(value: object, name: str) -> float:
    if not is_finite_number(value):
        raise UserError(f"{name} returns {value!r} among its values; they must be finite numbers")
    return float(value)
