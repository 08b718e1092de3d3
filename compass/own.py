"""Functions of the user's own, named `path/file.py:function`: found, imported and given values.

No torch: verifier workers import this module too.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeGuard

from compass.errors import UserError
from compass.field_types import WrongTypeError, describe, from_toml

OwnValue = bool | int | float | str
"""What a table of values for an own function may hold."""


def is_own(name: str) -> bool:
    """Whether `name` is meant as `FILE.py:FUNCTION`."""
    return ".py:" in name


def own_file(name: str) -> Path:
    """The file of `FILE.py:FUNCTION`."""
    return Path(name.rpartition(":")[0])


@cache  # rewards ask for it again with every completion
def load_function(name: str) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` names; its file is run once in a process.

    Raises:
        UserError: there is no such file, it does not import (with the line that failed), or holds
            no such function.
    """
    if not is_own(name):
        raise UserError(f"{name!r} names no function; write path/file.py:function")
    path, attribute = own_file(name), name.rpartition(":")[2]
    module = _import_file(path)
    function = getattr(module, attribute, None)
    if function is None:
        found = [n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_"]
        raise UserError(
            f"{path} has no {attribute!r}; it has {', '.join(sorted(found)) or 'no function'}"
        )
    if not callable(function):
        raise UserError(f"{path}: {attribute} is {function!r}; it must be a function")
    return function


def is_finite_number(value: object) -> TypeGuard[int | float]:
    """Whether a function of the user's own may have returned it where a number is wanted."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def bind_values(
    name: str,
    function: Callable[..., Any],
    values: Mapping[str, OwnValue],
    *,
    takes: tuple[str, ...],
    table: str,
) -> Callable[..., Any]:
    """`function` with `values` for its own parameters, checked against their annotations.

    Args:
        name: of the function, for errors.
        takes: what it will be called with, in order.
        table: where the values come from, for errors.

    Raises:
        UserError: it cannot be called with `takes` and `values`, or a value has another type.
    """
    try:
        inspect.signature(function).bind(*takes, **values)
    except TypeError as error:
        wanted = ", ".join([*takes, *(f"{key}=..." for key in values)])
        raise UserError(
            f"{name} is called as ({wanted}) but takes {inspect.signature(function)} ({error}); "
            f"change it, or the values in [{table}]"
        ) from None
    checked = {
        key: _checked(f"{table}.{key}={value!r}", value, _annotation(name, function, key))
        for key, value in values.items()
    }
    return partial(function, **checked)


def _annotation(name: str, function: Callable[..., Any], key: str) -> Any:
    """The type that a parameter asks for; `Any` where it asks for none."""
    try:
        return inspect.signature(function, eval_str=True).parameters[key].annotation
    except KeyError:  # one of **own
        return inspect.Parameter.empty
    except NameError as error:
        raise UserError(
            f"{name}: {error} in its annotations; import what they name when it runs too"
        ) from None


def _checked(where: str, value: OwnValue, kind: Any) -> Any:
    if kind in (Any, inspect.Parameter.empty):
        return value
    if kind not in (bool, int, float, str):
        raise UserError(f"{where} is for a parameter of {kind}; make it bool, int, float or str")
    try:
        return from_toml(value, kind)
    except WrongTypeError:
        raise UserError(f"{where} must be {describe(kind)}") from None


def _import_file(path: Path) -> Any:
    """The module of a file, which is not on the path of imports."""
    name = f"compass_own_{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a Python file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "it ends in .py"
    assert spec.loader is not None, "and so it has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type hints are looked up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{place_of(error, path)}: {what_of(error)}; mend the file") from None
    return module


def what_of(error: BaseException) -> str:
    """An exception as `Kind: message`."""
    return f"{type(error).__name__}: {error}"


def place_of(error: BaseException, path: Path) -> str:
    """`FILE:LINE` of the user's own file that `error` came through last."""
    return f"{path}:{_line_of(error, path)}"


def _line_of(error: BaseException, path: Path) -> int:
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    return next((line for line in reversed(lines) if line is not None), 1)
