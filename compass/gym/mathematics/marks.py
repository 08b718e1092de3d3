r"""Where a completion marks its final answer: boxes, `<answer>` tags, GSM8K's `####`.

The last mark wins. Several boxes with nothing but commas, `and` or `or` between them are one
answer of several parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:\[[^\]]*\]\s*)*")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_CONNECTION = re.compile(
    r"(?:\s|[,;&$*]|\\[()\[\],;!]|\\q?quad|\\(?:text|mathrm)\s*\{[\s,]*(?:and|or)?[\s,]*\}|\band\b|\bor\b"
    r"|及|和|或|และ|หรือ|و)*"
)
_HASHES = "####"
MAX_CHARACTERS = 1_000
"""Of one marked answer; what is longer is none."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """What the completion marked as its answer."""

    parts: tuple[str, ...]
    """More than one for several boxes in a row."""
    end: int
    """Where the mark ends in the text."""


def marked_answer(text: str, *, finished: bool) -> Marked | None:
    r"""The last marked answer; None when nothing is marked.

    A box that never closes holds the rest of its line when the model stopped by itself, and no
    answer when it was cut off, for `\boxed{4` may have been going to be 42.
    """
    marks = [mark for mark in (_boxes(text, finished), _tag(text), _hashes(text)) if mark]
    return max(marks, key=lambda mark: mark.end, default=None)


def _tag(text: str) -> Marked | None:
    start = text.lower().rfind("<answer>")
    found = _TAG.match(text, start) if start >= 0 else None
    if found is None:
        return None
    inside = _boxes(found[1], finished=True)
    return Marked(parts=(found[1],) if inside is None else inside.parts, end=found.end())


def _hashes(text: str) -> Marked | None:
    """The rest of the last line when it starts with `####`: elsewhere that is a heading."""
    text = text.rstrip()
    line = text[text.rfind("\n") + 1 :].strip()
    if not line.startswith(_HASHES) or line.startswith(_HASHES + "#"):
        return None
    answer = line.removeprefix(_HASHES).strip()
    return Marked(parts=(answer,), end=len(text)) if answer else None


def _boxes(text: str, finished: bool) -> Marked | None:
    """The last run of boxes."""
    boxes = list(_each_box(text, finished))
    if not boxes:
        return None
    run = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _CONNECTION.fullmatch(text[box.end : run[0].start]):
            break
        run.insert(0, box)
    return Marked(parts=tuple(box.content for box in run), end=run[-1].end)


@dataclass(frozen=True, kw_only=True)
class _Box:
    start: int
    end: int
    content: str


def _each_box(text: str, finished: bool) -> Iterator[_Box]:
    position = 0
    while found := _BOX.search(text, position):
        box = _box_at(text, found, finished)
        yield box
        position = box.end


def _box_at(text: str, found: re.Match[str], finished: bool) -> _Box:
    start = found.end()
    if text[start : start + 1] != "{":  # `\boxed 5`, as TeX reads it but for a number's digits
        short = re.compile(r"\d+(?:\.\d+)?|[A-Za-z]|").match(text, start)
        assert short is not None, "an empty match is a match"
        return _Box(start=found.start(), end=max(short.end(), found.end()), content=short[0])
    depth = 0
    for end in range(start, len(text)):
        character = text[end]
        if character in "{}" and text[end - 1] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return _Box(start=found.start(), end=end + 1, content=text[start + 1 : end])
    line = text[start + 1 :].partition("\n")[0] if finished else ""
    return _Box(start=found.start(), end=len(text), content=line)
