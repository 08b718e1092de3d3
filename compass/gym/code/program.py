"""The program in a completion: its last fenced block."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def last_block(text: str) -> str | None:
    """The content of the last fenced block, as CommonMark has it: one that is never closed goes on
    to the end. None when there is no block."""
    block: list[str] | None = None
    found, mark = None, ""
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip())
        if block is None and fence and not (fence[1][0] == "`" and "`" in fence[2]):
            block, mark = [], fence[1]
        elif block is not None and fence and fence[1].startswith(mark) and not fence[2]:
            found, block = "\n".join(block), None
        elif block is not None:
            block.append(line)
    return found if block is None else "\n".join(block)
