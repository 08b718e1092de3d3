"""The functions that a prompt offers: which arguments they take, of which types.

`tools` of a row is a list of functions, bare or as `{"type": "function", "function": ...}`, whose
`parameters` are JSON schema, BFCL's dialect of it, or xLAM's (the parameters themselves).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_Types = tuple[type, ...]

_TYPES: Mapping[str, _Types] = MappingProxyType(
    {
        "string": (str,),
        "str": (str,),
        "integer": (int,),
        "int": (int,),
        "float": (float, int),
        "number": (float, int),
        "boolean": (bool,),
        "bool": (bool,),
        "array": (list, tuple),
        "list": (list, tuple),
        "tuple": (list, tuple),
        "object": (dict,),
        "dict": (dict,),
        "null": (type(None),),
    }
)
"""Exact types by the first word of a type's name; a name that is not here is any type."""


class BadToolsError(Exception):
    """A row's tools or expected calls cannot be read; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function."""

    name: str
    parameters: Mapping[str, Mapping[str, Any]]
    """Their schemas by name."""
    required: frozenset[str]


def read_tools(given: object) -> dict[str, Function]:
    """Functions by name. Errors: `BadToolsError`."""
    given = read_json(given, "tools")
    if not isinstance(given, list) or not given:
        raise BadToolsError("needs `tools`: a list of functions that is not empty, or its JSON")
    functions = [_function(f"tools[{index}]", tool) for index, tool in enumerate(given)]
    return {function.name: function for function in functions}


def read_json(given: object, name: str) -> Any:
    """A value, or what its JSON text says. Errors: `BadToolsError`."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        raise BadToolsError(f"needs `{name}` that is a list, or its JSON") from None


def _function(where: str, tool: object) -> Function:
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        tool = tool["function"]
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
        raise BadToolsError(f"`{where}` has no `name`; it must be a function with one")
    schema = tool.get("parameters") or {}
    if not isinstance(schema, Mapping):
        raise BadToolsError(f"`parameters` of `{where}` must be an object")
    is_schema = "properties" in schema or not all(isinstance(v, Mapping) for v in schema.values())
    parameters = (schema.get("properties") or {}) if is_schema else schema
    if not isinstance(parameters, Mapping):
        raise BadToolsError(f"`properties` of `{where}` must be an object")
    known = {k: v if isinstance(v, Mapping) else {} for k, v in parameters.items()}
    required = (schema.get("required") or ()) if is_schema else _xlam_required(known)
    return Function(name=tool["name"], parameters=known, required=frozenset(required))


def _xlam_required(parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        name
        for name, schema in parameters.items()
        if "default" not in schema and "optional" not in str(schema.get("type"))
    ]


def fits(value: object, schema: object) -> bool:
    """Whether a value is of its schema's type: an integer is a number, true is no integer, items
    and properties are looked into."""
    if not isinstance(schema, Mapping):
        return True
    named = schema.get("type")
    types = [_exact(name) for name in (named if isinstance(named, list) else [named])]
    if None not in types and not any(type(value) in exact for exact in types if exact):
        return False
    if isinstance(value, list | tuple):
        return all(fits(item, schema.get("items")) for item in value)
    properties = schema.get("properties")
    if isinstance(value, dict) and isinstance(properties, Mapping):
        return all(fits(item, properties.get(name)) for name, item in value.items())
    return True


def _exact(name: object) -> _Types | None:
    first = str(name).lower().replace("[", " ").replace(",", " ").split()
    return _TYPES.get(first[0]) if first else None
