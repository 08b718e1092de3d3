"""Configuration: frozen dataclasses filled from defaults, a TOML file and the command line.

A recipe's root `Config` is a frozen dataclass of fields and of nested frozen dataclasses, each
with a docstring under it. A field is named by its dotted path: `train.lr` is the key `lr` of the
table `[train]` in TOML, and `--train.lr 1e-4` on the command line. Values from both places pass
the same type check. tyro renders `--help`; the parsing is ours, because a mistake must be one line
that names the key, the value and the remedy, and tyro answers with boxes of many lines.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from compass.cli import until_nobody_reads
from compass.errors import UserError
from compass.field_types import (
    WrongTypeError,
    describe,
    from_toml,
    from_words,
    is_open_ended,
    table_of,
)
from compass.machine.shipped import config_file
from compass.machine.versions import installed_versions
from compass.manifest import write_whole

ConfigT = TypeVar("ConfigT")
_MOST_SHOWN = 300
"""Characters of a wrong value that an error repeats."""


def parse(config_cls: type[ConfigT], argv: Sequence[str], *, description: str) -> ConfigT:
    """Build `config_cls` from its defaults, then `--config FILE.toml`, then the rest of `argv`.

    `argv` is without the program's name. A bare `--flag` of a bool field means true; a list takes
    the words up to the next `--`, and those of the same flag given again; of any other flag the
    last counts. A value that itself begins with `--` is given as `--flag=value`; the word `None`
    clears an optional field (in TOML too, which has no null).

    Raises:
        UserError: unknown key, wrong type, missing or invalid file, or a required field not given.
        SystemExit: with code 0, after `--help`.
    """
    if "--help" in argv or "-h" in argv:
        _print_help(config_cls, description)
    kinds = dict(_leaf_kinds(config_cls))
    assert "config" not in kinds, "`config` is taken by --config FILE.toml"
    words = _split_words(argv, kinds)
    values: dict[str, Any] = {}
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    if "config" in words:
        values |= _read_toml(_config_path(words.pop("config")), kinds)
    for path, given in words.items():
        where = f"--{path}={' '.join(given)!r}" if given else f"--{path} (no value given)"
        if path in kinds:
            values[path] = _checked(where, given, kinds[path], from_words)
        else:
            place = _place_in_table(path, kinds)
            assert place is not None, "words are split by the same rule"
            table, name, key = place
            kind = get_type_hints(table_of(kinds[table]))[key]
            value = _plain(_checked(where, given, kind, from_words))
            tables.setdefault(table, {}).setdefault(name, {})[key] = value
    for path, rows in tables.items():
        values[path] = _with_rows(path, values.get(path), rows, kinds[path])
    return _construct(config_cls, values)


def to_dict(cfg: Any) -> dict[str, Any]:
    """The config as nested dicts of JSON values: paths become strings, tuples lists."""
    return {f.name: _plain(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}


def write_resolved(cfg: Any, run_dir: Path, *, digests: Mapping[str, str] = {}) -> None:
    """Write `config.toml` (every field; `--config` reads it back to an equal config) and
    `environment.json` (git commit, versions, command line) to `run_dir`. `digests`, of files that
    fields name, go before the fields as comments.

    Raises:
        UserError: the folder cannot be written.
    """
    versions = installed_versions("compass-rl", "torch", "torchtitan", "torchao")
    environment = {"command": sys.argv, **_git_state(), "versions": versions}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write the run folder {run_dir}: {e.strerror}") from e
    comments = "".join(f"# sha256 of {name}: {value}\n" for name, value in digests.items())
    write_whole(run_dir / "config.toml", comments + to_toml(cfg))
    write_whole(run_dir / "environment.json", json.dumps(environment, indent=2) + "\n")


def _print_help(config_cls: type, description: str) -> None:
    import tyro  # for help alone

    notes = (
        "--config FILE.toml reads values from a file first; flags given here override it. "
        "A bare boolean flag means True."
    )
    with until_nobody_reads():
        tyro.cli(
            config_cls,
            args=["--help"],
            description=f"{description.strip()}\n\n{notes}{_help_of_tables(config_cls)}",
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )


def _help_of_tables(config_cls: type, prefix: str = "") -> str:
    """Of the fields that hold tables of the user's own names, which tyro cannot know."""
    text, docs = "", _field_docs(config_cls)
    hints = get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):
        path, kind = f"{prefix}{field.name}", hints[field.name]
        table = table_of(kind)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            text += _help_of_tables(kind, f"{path}.")
        elif table is not None:
            text += f"\n\n--{path}  {docs[field.name]}\n"
            text += "\n".join(
                f"--{path}.NAME.{key}  {explanation}"
                for key, explanation in _field_docs(table).items()
            )
    return text


def _field_docs(config_cls: type) -> dict[str, str]:
    """The docstring under each field, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(below.value)).split())
        for field, below in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def _leaf_kinds(config_cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and type of every field that is not itself a config."""
    hints = get_type_hints(config_cls)
    for field in dataclasses.fields(config_cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _leaf_kinds(kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", kind


def _split_words(argv: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, list[str]]:
    """Flags with their words."""
    words: dict[str, list[str]] = {}
    current: list[str] | None = None
    for arg in argv:
        if not arg.isascii() and any("\ud800" <= char <= "\udfff" for char in arg):
            raise UserError(f"argument {arg!r} is not UTF-8; rename the file, or type it anew")
        if arg.startswith("--"):
            flag, has_value, value = arg[2:].partition("=")
            path = flag.replace("-", "_")
            if path not in kinds and path != "config" and not _place_in_table(path, kinds):
                raise UserError(f"unknown flag --{flag}; {_nearest(path, kinds, '--')}")
            earlier = words.get(path, []) if path in kinds and is_open_ended(kinds[path]) else []
            current = words[path] = earlier + ([value] if has_value else [])
        elif current is None:
            raise UserError(f"unexpected argument {arg!r}; options are given as --name value")
        else:
            current.append(arg)
    return words


def _place_in_table(path: str, kinds: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(field, NAME, key) of a flag `field.NAME.key` into a table of the user's own names."""
    for field, kind in kinds.items():
        table = table_of(kind)
        name, has_key, key = path.removeprefix(f"{field}.").partition(".")
        if table is not None and path.startswith(f"{field}.") and has_key:
            known = {f.name for f in dataclasses.fields(table)}
            return (field, name, key) if key in known else None
    return None


def _with_rows(path: str, held: Any, rows: dict[str, dict[str, Any]], kind: Any) -> Any:
    """The tables of a file, with what flags say of them."""
    held = _plain(held) if isinstance(held, dict) else {}
    tables = {name: _stated(table) for name, table in held.items()}
    for name, row in rows.items():
        tables[name] = tables.get(name, {}) | row
    return _checked(f"--{path}.NAME={rows!r}", tables, kind, from_toml)


def _stated(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: what is None says so in a word."""
    return {key: "None" if value is None else value for key, value in table.items()}


def _config_path(words: list[str]) -> Path:
    if len(words) != 1:
        raise UserError(f"--config takes one TOML file, got {' '.join(words) or 'none'!r}")
    return Path(words[0])


def _read_toml(file: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    try:
        tree = tomllib.loads(config_file(file).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"--config {file}: {e.strerror}; give the path of a TOML file") from e
    # Also integers of thousands of digits and hundreds of nested brackets.
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is not valid TOML: {e}") from e
    return {
        path: _checked(f"{file}: {path}={value!r}", value, kinds[path], from_toml)
        for path, value in _toml_leaves(tree, kinds, file)
    }


def _toml_leaves(
    table: Mapping[str, Any], kinds: Mapping[str, Any], file: Path, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if path in kinds:
            yield path, value
        elif not any(known.startswith(f"{path}.") for known in kinds):
            raise UserError(f"{file}: unknown key {path}; {_nearest(path, kinds)}")
        elif not isinstance(value, dict):
            raise UserError(f"{file}: {path}={value!r}, but {path} is a table; write [{path}]")
        else:
            yield from _toml_leaves(value, kinds, file, f"{path}.")


def _nearest(path: str, kinds: Mapping[str, Any], mark: str = "") -> str:
    """The suggestion for an unknown path: the same name in another table, else the most alike."""
    name = path.rpartition(".")[2]
    same_name = [known for known in kinds if known.rpartition(".")[2] == name]
    alike = same_name or difflib.get_close_matches(path, kinds, n=1, cutoff=0.6)
    if alike:
        return f"did you mean {mark}{alike[0]}?"
    return "--help lists all of them"


def _checked(where: str, raw: Any, kind: Any, convert: Callable[[Any, Any], Any]) -> Any:
    try:
        return convert(raw, kind)
    except WrongTypeError as error:
        wanted = error.args[0] if error.args else describe(kind)
        shown = where if len(where) <= _MOST_SHOWN else f"{where[:_MOST_SHOWN]}..."
        raise UserError(f"{shown} must be {wanted}") from None


def _construct(
    config_cls: type[ConfigT], values: Mapping[str, Any], prefix: str = "", base: Any = None
) -> ConfigT:
    """`config_cls` with `values` (by dotted path) over `base`, or over its defaults."""
    hints = get_type_hints(config_cls)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(config_cls):  # type: ignore[arg-type]
        path, kind = f"{prefix}{field.name}", hints[field.name]
        default = _default(field) if base is None else getattr(base, field.name)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            nested = None if default is dataclasses.MISSING else default
            given[field.name] = _construct(kind, values, f"{path}.", nested)
        elif path in values:
            given[field.name] = values[path]
        elif default is dataclasses.MISSING:
            raise UserError(f"--{path} is required ({describe(kind)}); --help explains it")
        else:
            given[field.name] = default
    return config_cls(**given)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def to_toml(cfg: Any, prefix: str = "") -> str:
    """The config as TOML that `parse` reads back to an equal config; None is the word "None"."""
    fields = [(field.name, getattr(cfg, field.name)) for field in dataclasses.fields(cfg)]
    lines = [
        f"{name} = {_toml_value(_plain(value))}"
        for name, value in fields
        if not dataclasses.is_dataclass(value)
    ]
    text = "".join(f"{line}\n" for line in lines)
    for name, value in fields:
        if dataclasses.is_dataclass(value):
            text += f"\n[{prefix}{name}]\n{to_toml(value, f'{prefix}{name}.')}"
    return text


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        items = (f"{_toml_value(key)} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, float):
        return repr(value)
    if value is None:
        return '"None"'
    # JSON's escapes are TOML's, save for DEL, which JSON leaves bare and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _git_state() -> dict[str, Any]:
    """Commit of the source tree, and whether it was edited since; nulls outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *args: str) -> str | None:
    run = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else None
