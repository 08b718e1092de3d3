"""Recipes, tools and configurations that come with Compass: in a clone they are beside the package,
in an installed wheel inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """`recipes`, `tools` or `configs`, wherever it is."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def shipped_programs(folder: str) -> list[str]:
    """Names of the recipes or tools that can be run."""
    return sorted(path.stem for path in shipped_folder(folder).glob("[a-z]*.py"))


def config_file(path: Path) -> Path:
    """The file that `--config` names: `configs/...`, where there is none of that name here, is the
    one that comes with Compass."""
    if path.exists() or path.is_absolute() or path.parts[:1] != ("configs",):
        return path
    return shipped_folder("configs").joinpath(*path.parts[1:])
