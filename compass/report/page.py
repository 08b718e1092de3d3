"""Puts the page together: markup, style, program, plotting library and data in one file that loads
nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compass.errors import UserError

_PARTS = Path(__file__).parent / "page"
PROGRAM = (
    "decode.js",
    "select.js",
    "elements.js",
    "charts.js",
    "list.js",
    "inspector.js",
    "main.js",
)
"""In the order in which they build on each other."""


def assemble(content: dict[str, Any], blocks: Sequence[str]) -> str:
    """The page.

    Text of runs is only ever data: JSON in which no `<` is left, and base64. The policy lets no
    script run but ours and the library, by their digests, and nothing be loaded.

    Raises:
        UserError: the plotting library is not installed.
    """
    program = '"use strict";\n' + "\n".join(_part(name) for name in PROGRAM)
    library = plotting_library()
    policy = (
        f"default-src 'none'; script-src {_digest(library)} {_digest(program)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": policy,
        "STYLE": _part("style.css"),
        "DATA": data,
        "BLOCKS": "\n".join(
            f'<script type="text/plain" class="block">{b}</script>' for b in blocks
        ),
        "LIBRARY": library,
        "PROGRAM": program,
    }
    page = _part("page.html")
    pieces = []
    for (
        name,
        text,
    ) in parts.items():  # one after the other: what is filled in is not looked at again
        before, _, page = page.partition(f"@{name}@")
        pieces += [before, text]
    return "".join([*pieces, page])


def plotting_library() -> str:
    """Plotly, from the installed package.

    Raises:
        UserError: it is not installed.
    """
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise UserError("the report draws with plotly: pip install 'compass-rl[report]'")
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return script.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
