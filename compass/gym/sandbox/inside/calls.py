"""Calls of a program's functions by tests that run in another sandbox.

The program's process answers calls; the test's process makes them. Arguments and results cross as
text (`literals`), so neither ever holds an object of the other's.
"""

from __future__ import annotations

import builtins
import posix
import sys

from compass.gym.sandbox.inside import literals, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, NoReturn

_MAX_MESSAGE_CHARACTERS = 1000


def answer_calls(program: CodeType) -> None:
    """The program's side: load it, say READY, and answer calls until there are no more."""
    server.leave(lambda: _answer(server.execute(program, "program")))


def _answer(names: dict[str, Any]) -> NoReturn:
    sys.set_int_max_str_digits(0)
    server.send(server.READY)
    while True:
        kind, content = server.receive()
        if kind != server.CALL:
            posix._exit(0)  # what it left running is not waited for
        server.send(*_outcome(names, *literals.decode(content)))


def _outcome(
    names: dict[str, Any], name: str, arguments: list[Any], named: dict[str, Any]
) -> tuple[bytes, bytes]:
    try:
        result = _function(names, name)(*arguments, **named)
    except Exception as error:
        return server.RAISED, literals.encode((_built_in(error), _message(error)))
    try:
        return server.VALUE, literals.encode(result)
    except (literals.ForeignError, RecursionError) as error:
        return server.FOREIGN, f"{error}".encode("utf-8", "replace")


def _function(names: dict[str, Any], name: str) -> Any:
    """What the row calls it: a name, a method of `Solution`, or an expression."""
    if name in names:
        return names[name]
    if name.isidentifier() and "Solution" in names:
        return getattr(names["Solution"](), name)
    return eval(name, names)


def _built_in(error: Exception) -> str:
    """The most special class of an exception that everybody knows."""
    known = (kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
    return next(known).__name__


def _message(error: Exception) -> str:
    return str(error)[:_MAX_MESSAGE_CHARACTERS]


def make_calls(test: CodeType) -> None:
    """The test's side: run it, with the program's names standing for calls of them. Its input
    lists those that Python has as well."""
    sys.set_int_max_str_digits(0)
    hidden = {name: _Called(name) for name in sys.stdin.read().split()}
    names = _Names(hidden, __name__="test", __builtins__=builtins)
    server.leave(lambda: exec(test, names))


class _Names(dict[str, Any] if TYPE_CHECKING else dict):  # type: ignore[misc]
    """Names of a test: what it does not know itself and Python does not is the program's."""

    def __missing__(self, name: str) -> _Called:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        return _Called(name)


class _Called:
    """A name of the program, as its tests see it."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        server.send(server.CALL, literals.encode((self.__name__, list(arguments), named)))
        kind, content = server.receive()
        if kind == server.VALUE:
            return literals.decode(content)
        raise _exception(*literals.decode(content))


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return Exception(message)
    try:
        return kind(message)
    except TypeError:  # UnicodeDecodeError wants five arguments
        return Exception(message)
