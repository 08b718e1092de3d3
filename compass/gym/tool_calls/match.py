"""Whether the calls made are those expected, in any order (BFCL's rules)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compass.gym.tool_calls.call import Call
from compass.gym.tool_calls.expected import Expected
from compass.gym.tool_calls.schema import Function, fits


def mismatch(call: Call, expected: Expected, functions: Mapping[str, Function]) -> str | None:
    """Why a call is not the expected one; None when it is."""
    if call.name != expected.name:
        known = "" if call.name in functions else ", which there is not"
        return f"calls {call.name!r}{known}, not {expected.name!r}"
    function = functions[call.name]
    lacking = sorted(function.required - call.arguments.keys())
    if lacking:
        return f"{call.name}: `{lacking[0]}` is missing"
    for name, value in call.arguments.items():
        if name not in function.parameters:
            return f"{call.name}: there is no `{name}`"
        choice = expected.arguments.choices.get(name)
        if not fits(value, function.parameters[name]) and not (
            choice is not None and choice.has_type_of(value)
        ):
            return f"{call.name}: `{name}` is of a wrong type"
    wrong = expected.arguments.wrong_field(call.arguments)
    return None if wrong is None else f"{call.name}: `{wrong}` is not what was asked for"


def num_matched(
    calls: Sequence[Call], expected: Sequence[Expected], functions: Mapping[str, Function]
) -> int:
    """How many of the expected calls were made, each call counting for one of them at most: a
    maximum matching, so that no order of writing costs anything."""
    fitting = [
        [i for i, call in enumerate(calls) if mismatch(call, one, functions) is None]
        for one in expected
    ]
    taken: dict[int, int] = {}
    return sum(_assign(wanted, fitting, taken, set()) for wanted in range(len(expected)))


def _assign(
    wanted: int, fitting: Sequence[Sequence[int]], taken: dict[int, int], tried: set[int]
) -> bool:
    """Find a call for one more expected call, moving others to another call where that helps."""
    for call in fitting[wanted]:
        if call not in tried:
            tried.add(call)
            if call not in taken or _assign(taken[call], fitting, taken, tried):
                taken[call] = wanted
                return True
    return False
