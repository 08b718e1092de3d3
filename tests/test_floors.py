"""The house rules that a machine can check: who may import whom, sizes, docstrings, no steering by
environment variables. All violations of a tree are reported at once."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"models": 1, "generate": 2, "train": 2, "gym": 2, "merge": 2, "run": 2, "rl": 3}
"""Modules directly in compass/ that are not named here are the ground floor, 0."""
MAX_FILE_LINES, MAX_RECIPE_LINES = 500, 300
MAX_FUNCTION_LINES, MAX_RECIPE_MAIN_LINES = 80, 150
MAX_FOLDER_FILES = 18
EMPTY_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def imports(tree: ast.AST, *, at_run_time: bool = False) -> Iterator[str]:
    """Names of imported modules; `from a import b` gives `a` and `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, at_run_time=at_run_time)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def room(module: str) -> str:
    """`compass.gym.pool.pool` is in `gym`; a module directly in compass/ is a room of its own."""
    return module.split(".")[1]


def upward_imports(path: str, tree: ast.Module) -> Iterator[str]:
    own = path.removesuffix(".py").split("/")
    if own[0] != "compass":
        return
    for name in sorted({n for n in imports(tree) if n.startswith("compass.")}):
        here, there = own[1], room(name)
        if here == there:
            continue
        floor_here, floor_there = FLOORS.get(here, 0), FLOORS.get(there, 0)
        if floor_there > floor_here or floor_there == floor_here > 0:
            yield f"{path} imports {name}, which is not on a lower floor"


def foreign_imports(path: str, tree: ast.Module) -> Iterator[str]:
    for name in sorted(set(imports(tree))):
        if is_under(name, "torchtitan") and not path.startswith("compass/models/"):
            yield f"{path} imports {name}; only compass/models may"
        if path.startswith("compass/") and name.split(".")[0] in ("recipes", "tools", "tests"):
            yield f"{path} imports {name}, which is above it"
    if path.startswith("compass/gym/"):
        for name in sorted({n for n in imports(tree, at_run_time=True) if is_under(n, "torch")}):
            yield f"{path} imports {name}; verifier workers must start without torch"


def sizes(path: str, tree: ast.Module, num_lines: int) -> Iterator[str]:
    is_recipe = path.startswith("recipes/")
    limit = MAX_RECIPE_LINES if is_recipe else MAX_FILE_LINES
    if num_lines > limit:
        yield f"{path} has {num_lines} lines, more than {limit}"
    if path.rsplit("/", 1)[-1] in EMPTY_NAMES:
        yield f"{path} is named after nothing"
    for node in ast.walk(tree):
        if isinstance(node, Function):
            length = (node.end_lineno or 0) - node.lineno + 1
            long_main = is_recipe and node.name == "main"
            limit = MAX_RECIPE_MAIN_LINES if long_main else MAX_FUNCTION_LINES
            if length > limit:
                yield f"{path}: {node.name} has {length} lines, more than {limit}"


def reads_of_the_environment(path: str, tree: ast.Module) -> Iterator[str]:
    """Handing `os.environ` on to a child process is no read."""
    if path == "compass/distributed.py":
        return
    for node in ast.walk(tree):
        read = ""
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            read = ast.unparse(node.value)
        elif isinstance(node, ast.Call):
            read = ast.unparse(node.func)
        elif isinstance(node, ast.Compare):
            read = ast.unparse(node.comparators[-1])
        if read in ("os.environ", "os.environ.get", "os.environ.pop", "os.getenv"):
            yield f"{path}:{node.lineno} reads the environment; make it a config field"


def missing_docstrings(path: str, tree: ast.Module) -> Iterator[str]:
    if tree.body and ast.get_docstring(tree) is None:
        yield f"{path} has no docstring"
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        is_main = isinstance(node, Function) and node.name == "main"
        if ast.get_docstring(node) is None and not is_main:
            yield f"{path}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            yield from _undocumented_fields(path, node)


def _undocumented_fields(path: str, config: ast.ClassDef) -> Iterator[str]:
    """A field that is itself a config is explained by that config's docstring."""
    for node, following in zip(config.body, [*config.body[1:], None], strict=True):
        documented = (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        )
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.annotation).endswith("Config"):
            continue
        if not documented:
            yield f"{path}: {config.name}.{ast.unparse(node.target)} has no docstring under it"


def violations(path: str, source: str) -> list[str]:
    """Everything wrong with one file, whose path is relative to the root of the tree."""
    tree = ast.parse(source)
    return [
        *upward_imports(path, tree),
        *foreign_imports(path, tree),
        *sizes(path, tree, source.count("\n")),
        *reads_of_the_environment(path, tree),
        *missing_docstrings(path, tree),
    ]


def project_files() -> Iterator[Path]:
    for folder in ("compass", "recipes", "tools"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_the_house_rules_hold():
    found = [
        violation
        for file in project_files()
        for violation in violations(str(file.relative_to(ROOT)), file.read_text())
    ]
    assert not found, "\n" + "\n".join(found)


def test_no_folder_is_crowded():
    folders = Counter(file.parent for file in project_files())
    crowded = {str(folder): n for folder, n in folders.items() if n > MAX_FOLDER_FILES}
    assert not crowded


def test_importing_any_gym_module_never_leads_to_torch():
    """Follows module-level imports through compass, since a floor below may import torch."""
    graph = _imports_at_start()
    found = []
    for start in (name for name in graph if name.startswith("compass.gym.")):
        trail, reached = [start], {start}
        while trail:
            module = trail.pop()
            if any(is_under(name, "torch") for name in graph[module]):
                found.append(f"{start} leads to torch through {module}")
            trail += (graph[module] & graph.keys()) - reached
            reached |= graph[module] & graph.keys()
    assert not found, "\n" + "\n".join(found)


def test_no_module_imports_itself_through_others():
    graph = _imports_at_start()
    TopologicalSorter({name: found & graph.keys() for name, found in graph.items()}).prepare()


def _imports_at_start() -> dict[str, set[str]]:
    """What each module of the project imports the moment it is imported."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): set(
            _module_level_imports(ast.parse(file.read_text()))
        )
        for file in project_files()
    }


def _module_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []), at_run_time=True)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("compass/config.py", "from compass.models import specs", "not on a lower floor"),
        ("compass/models/x.py", "import compass.rl.pack", "not on a lower floor"),
        ("compass/gym/x.py", "from compass.train import loss", "not on a lower floor"),
        ("compass/train/x.py", "def _f():\n    from compass import merge", "not on a lower floor"),
        ("compass/rl/x.py", "import torchtitan", "only compass/models may"),
        ("recipes/x.py", "from torchtitan.models import moe", "only compass/models may"),
        ("compass/gym/x.py", "def _f():\n    import torch.distributed", "without torch"),
        ("compass/rl/x.py", "import recipes.rl", "which is above it"),
        ("compass/utils.py", "", "named after nothing"),
        ("compass/x.py", "\n" * 501, "lines, more than 500"),
        ("recipes/x.py", "\n" * 301, "lines, more than 300"),
        ("compass/x.py", "def _f():\n" + "    pass\n" * 80, "_f has 81 lines, more than 80"),
        ("recipes/x.py", "def main():\n" + "    pass\n" * 150, "main has 151 lines"),
        ("compass/x.py", "x = os.environ['A']", "reads the environment"),
        ("compass/x.py", "x = os.environ.get('A')", "reads the environment"),
        ("compass/x.py", "x = os.getenv('A')", "reads the environment"),
        ("compass/x.py", "x = 'A' in os.environ", "reads the environment"),
        ("compass/x.py", "def f(): pass", "f has no docstring"),
        ("compass/x.py", "class A: pass", "A has no docstring"),
        ("compass/x.py", "class AConfig:\n    a: int\n    'A.'\n    b: int", "AConfig.b has no"),
    ],
)
def test_each_rule_catches_its_breach(path, source, complaint):
    assert any(complaint in violation for violation in violations(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("compass/rl/x.py", "from compass.generate import sampling\nfrom compass.rl import pack"),
        ("compass/config.py", "from compass.errors import UserError"),
        ("compass/models/x.py", "import torchtitan.models"),
        ("compass/gym/x.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("compass/distributed.py", "x = os.environ['RANK']"),
        ("compass/gym/x.py", "x = os.environ | {'A': '1'}"),
        ("recipes/x.py", "def main():\n" + "    pass\n" * 149),
    ],
)
def test_no_rule_forbids_what_is_allowed(path, source):
    assert violations(path, f'"""A module."""\n{source}\n') == []
