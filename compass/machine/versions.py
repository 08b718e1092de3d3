"""Versions of what a run is made of."""

from __future__ import annotations

import platform
from importlib import metadata


def installed_versions(*packages: str) -> dict[str, str]:
    """Python's, and each package's; "not installed" where there is none, as for a clone of this one
    on PYTHONPATH alone."""
    return {"python": platform.python_version()} | {p: _version(p) for p in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
