"""docs/metrics.md has every key that the code can log and no other. What runs do log is held
against it where they run (`tests/recipes/test_rl.py`, `test_sft.py`)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.metrics_page import keys_of_page, unknown

ROOT = Path(__file__).parents[2]
ROOTS = {key.split("/")[0] for key in keys_of_page()}


def literals(tree: ast.AST) -> Iterator[str]:
    """Strings, with `*` for what an f-string fills in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            yield "".join(p.value if isinstance(p, ast.Constant) else "*" for p in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        else:
            yield from literals(node)


def keys_in_code() -> set[str]:
    """What looks like a key: a known first part, a slash, and no space. The console only reads."""
    found = set()
    for folder in ("compass", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "console.py":
                found |= set(literals(ast.parse(path.read_text())))
    return {k for k in found if re.fullmatch(rf"({'|'.join(ROOTS)})/[\w*/@.]+", k)}


def test_every_key_in_the_code_is_on_the_page():
    named = [key.replace("*", "x") for key in keys_in_code()]
    # `eval/SET/*` is filled from the names of `summarize`, which runs have on the page.
    assert [key for key in unknown(named) if key not in ("eval/x/x", "zv/x/x")] == []


def test_every_key_on_the_page_is_in_the_code():
    patterns = [re.compile(re.escape(key).replace(r"\*", ".+")) for key in keys_in_code()]
    missing = [key for key in keys_of_page() if not any(p.fullmatch(key) for p in patterns)]
    assert missing == []


def names_given(tree: ast.AST) -> Iterator[str]:
    """What is passed first to `Means.add` and `Means.add_values`."""
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_call and node.func.attr in ("add", "add_values") and node.args:
            yield from literals(ast.Module([ast.Expr(node.args[0])], []))


def test_no_key_begins_with_what_the_page_does_not_know():
    """Else it would escape the comparison."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "compass").rglob("*.py"))
    names = (name for tree in trees for name in names_given(tree))
    keys = [name for name in names if re.fullmatch(r"\w+/[\w*/]+", name)]
    assert len(keys) > 20
    assert {key.split("/")[0] for key in keys} <= ROOTS
