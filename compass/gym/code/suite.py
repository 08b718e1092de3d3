"""The tests of a prompt-file row, in the forms that data sets have them.

tests               a list of {"stdin", "stdout"} and {"code"}
input_output        APPS, TACO, LiveCodeBench: {"inputs", "outputs", "fn_name"}, or its JSON
test_list           MBPP: assert statements, with test_setup_code and test_imports
test, entry_point   HumanEval: `check(candidate)`
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

FIELDS = (
    *("tests", "input_output", "test_list", "test_setup_code", "test_imports"),
    *("test", "entry_point"),
)
"""Fields of a row that are read here."""


class BadTestsError(Exception):
    """A row's tests cannot be run, whatever the program is; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class InputTest:
    """The program reads `stdin` and must write `stdout`."""

    stdin: str
    stdout: str


@dataclass(frozen=True, kw_only=True)
class CallTest:
    """A function of the program, called with `arguments`, must return one of `expected`."""

    name: str
    arguments: tuple[Any, ...]
    expected: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class CodeTest:
    """Python that calls the program's functions; it passes if nothing is raised."""

    code: str
    hidden: tuple[str, ...] = ()
    """Names that are the program's although Python has them as well."""


Test = InputTest | CallTest | CodeTest


def read_suite(row: Mapping[str, Any], answer: str | None = None) -> tuple[Test, ...]:
    """The tests of a row, or where it has none those that are its `answer`, as JSON.

    Errors: `BadTestsError`.
    """
    given = [name for name in _FORMS if row.get(name) is not None]
    if not given and answer is not None:
        row = {**row, **_of_answer(answer)}
        given = [name for name in _FORMS if row.get(name) is not None]
    if len(given) != 1:
        raise BadTestsError(
            f"needs exactly one of {', '.join(f'`{name}`' for name in _FORMS)}: "
            f"has {' and '.join(given) or 'none'}"
        )
    tests = _FORMS[given[0]](row)
    if not tests:
        raise BadTestsError(f"needs at least one test: `{given[0]}` is empty")
    return tests


def _of_answer(answer: str) -> dict[str, Any]:
    """Some files have the tests where others have a reference."""
    value = _json("answer", answer)
    if isinstance(value, dict):
        return {"input_output": value} if "inputs" in value else value
    is_text = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return {"test_list" if is_text else "tests": value}


def _own(row: Mapping[str, Any]) -> tuple[Test, ...]:
    return tuple(_one(f"tests[{index}]", test) for index, test in enumerate(_listed(row, "tests")))


def _one(name: str, test: object) -> Test:
    if not isinstance(test, dict):
        raise BadTestsError(f"`{name}` is {_shown(test)}; it must be an object")
    if set(test) == {"code"}:
        return _code_test(f"{name}.code", test["code"])
    if set(test) != {"stdin", "stdout"}:
        raise BadTestsError(
            f'`{name}` has {sorted(test)}; it must have "stdin" and "stdout", or "code"'
        )
    return InputTest(
        stdin=_text(f"{name}.stdin", test["stdin"]), stdout=_text(f"{name}.stdout", test["stdout"])
    )


def _input_output(row: Mapping[str, Any]) -> tuple[Test, ...]:
    given = row["input_output"]
    if isinstance(given, str):
        given = _json("input_output", given)
    if not isinstance(given, dict):
        raise BadTestsError(f"`input_output` is {_shown(given)}; it must be an object")
    inputs, outputs = _listed(given, "inputs"), _listed(given, "outputs")
    if len(inputs) != len(outputs):
        raise BadTestsError(f"`input_output` has {len(inputs)} inputs and {len(outputs)} outputs")
    name = given.get("fn_name")
    pairs = zip(inputs, outputs, strict=True)
    if name is None:
        return tuple(InputTest(stdin=_joined(i), stdout=_joined(o)) for i, o in pairs)
    return tuple(_call_test(_text("fn_name", name), i, o) for i, o in pairs)


def _joined(lines: object) -> str:
    """Some files have a text, some its lines."""
    if isinstance(lines, list):
        return "\n".join(_text("inputs and outputs", line) for line in lines)
    return _text("inputs and outputs", lines)


def _call_test(name: str, given: object, expected: object) -> CallTest:
    """LiveCodeBench has the arguments as lines of JSON, the others as a list; APPS wraps some
    results in a list."""
    if isinstance(given, str):
        lines = [line for line in given.split("\n") if line.strip()]
        arguments = tuple(_json("inputs", line) for line in lines)
        return CallTest(
            name=name, arguments=arguments, expected=(_json("outputs", _text("outputs", expected)),)
        )
    if not isinstance(given, list):
        raise BadTestsError(f"`inputs` hold {_shown(given)}; they must be lists of arguments")
    wrapped = isinstance(expected, list) and len(expected) == 1
    return CallTest(
        name=name,
        arguments=tuple(given),
        expected=(expected, expected[0]) if wrapped else (expected,),  # type: ignore[index]
    )


def _test_list(row: Mapping[str, Any]) -> tuple[Test, ...]:
    lines = [_text("test_list", line) for line in _listed(row, "test_list")]
    imports = [_text("test_imports", line) for line in row.get("test_imports") or ()]
    before = "\n".join([*imports, _text("test_setup_code", row.get("test_setup_code") or "")])
    return tuple(
        _code_test(f"test_list[{index}]", f"{before}\n{line}") for index, line in enumerate(lines)
    )


def _check_function(row: Mapping[str, Any]) -> tuple[Test, ...]:
    entry = row.get("entry_point")
    if not isinstance(entry, str):
        raise BadTestsError(f"needs `entry_point` beside `test`: it is {_shown(entry)}")
    # By name, since it may be an expression: `Solution().add`.
    code = f"{_text('test', row['test'])}\n\ncheck(globals()[{entry!r}])\n"
    return (_code_test("test", code, entry),)


def _code_test(name: str, code: object, entry: str | None = None) -> CodeTest:
    code = _text(name, code)
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise BadTestsError(f"`{name}` is no Python: {error}") from None
    hidden = _first_call_of_a_builtin(tree) if entry is None else entry
    return CodeTest(code=code, hidden=(hidden,) if hasattr(builtins, hidden) else ())


def _first_call_of_a_builtin(tree: ast.AST) -> str:
    """MBPP tests functions called `sum` and `max`. Where nothing but Python's own names are called,
    the first of them is what is tested."""
    nodes = list(ast.walk(tree))
    calls = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    strange = [name for name in calls if not hasattr(builtins, name)]
    return "" if strange or not calls else calls[0]


def _listed(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = row.get(name)
    if isinstance(value, str):
        value = _json(name, value)
    if not isinstance(value, list):
        raise BadTestsError(f"`{name}` is {_shown(value)}; it must be a list")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadTestsError(f"`{name}` is {_shown(value)}; it must be text")
    return value


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTestsError(f"`{name}` is no JSON ({error}): {_shown(text)}") from None


def _shown(value: object) -> str:
    return repr(value)[:80]


_FORMS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Test, ...]]] = MappingProxyType(
    {
        "tests": _own,
        "input_output": _input_output,
        "test_list": _test_list,
        "test": _check_function,
    }
)
