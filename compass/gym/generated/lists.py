"""Lists of words under two constraints of IFEval (arXiv 2311.07911), judged by its checkers.

The careless demonstration gives the words and forgets the constraints.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compass.gym.generated.task import Task

_WORDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "animals": ("cat", "dog", "owl", "bee", "fox", "hen", "ant", "yak"),
        "colours": ("red", "blue", "green", "pink", "grey", "gold", "tan", "black"),
        "foods": ("rice", "soup", "corn", "bread", "plum", "fig", "egg", "tofu"),
        "towns": ("Rome", "Oslo", "Lima", "Bonn", "Hanoi", "Cebu", "Bern", "Lyon"),
        "tools": ("saw", "axe", "drill", "file", "rake", "hoe", "vice", "awl"),
        "metals": ("iron", "zinc", "lead", "tin", "gold", "steel", "brass", "nickel"),
    }
)
_ENDS = ("Done.", "The end.", "Bye.", "That is all.", "See you.")
_PAIRS = (
    ("commas", "end"),
    ("commas", "title"),
    ("commas", "keyword"),
    ("commas", "postscript"),
    ("commas", "quotation"),
    ("bullets", "end"),
    ("bullets", "title"),
    ("bullets", "keyword"),
    ("bullets", "postscript"),
    ("title", "end"),
    ("title", "keyword"),
    ("keyword", "end"),
    ("keyword", "quotation"),
    ("postscript", "keyword"),
)
"""Constraints that one answer can meet together."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What a task's constraints speak of."""

    kind: str
    number: int
    keyword: str
    end: str

    def sentence(self, constraint: str) -> str:
        """How the question asks for it."""
        return {
            "commas": "No commas.",
            "bullets": f"{self.number} bullets.",
            "end": f"End: {self.end}",
            "title": "Title in << >>.",
            "keyword": f"Use {self.keyword}.",
            "postscript": "Add P.S.",
            "quotation": "In quotes.",
        }[constraint]

    def checked(self, constraint: str) -> tuple[str, dict[str, Any]]:
        """IFEval's name and arguments of it."""
        checks: dict[str, tuple[str, dict[str, Any]]] = {
            "commas": ("punctuation:no_comma", {}),
            "bullets": ("detectable_format:number_bullet_lists", {"num_bullets": self.number}),
            "end": ("startend:end_checker", {"end_phrase": self.end}),
            "title": ("detectable_format:title", {}),
            "keyword": ("keywords:existence", {"keywords": [self.keyword]}),
            "postscript": ("detectable_content:postscript", {"postscript_marker": "P.S."}),
            "quotation": ("startend:quotation", {}),
        }
        return checks[constraint]


def draw_list(rng: random.Random) -> Task:
    """One list of two to four words of a kind."""
    kind = rng.choice(sorted(_WORDS))
    drawn = _Drawn(
        kind=kind,
        number=rng.randint(2, 4),
        keyword=rng.choice(_WORDS[kind]),
        end=rng.choice(_ENDS),
    )
    pair = rng.choice(_PAIRS)
    checked = [drawn.checked(constraint) for constraint in pair]
    sentences = " ".join(drawn.sentence(constraint) for constraint in pair)
    others = [word for word in _WORDS[kind] if word != drawn.keyword]
    return Task(
        question=f"Name {drawn.number} {kind}. {sentences}",
        domain="instructions",
        careful=_careful(drawn, pair, rng.sample(others, drawn.number)),
        careless=", ".join(rng.sample(others, drawn.number)),
        extra={
            "instruction_id_list": [name for name, _ in checked],
            "kwargs": [arguments for _, arguments in checked],
        },
    )


def _careful(drawn: _Drawn, pair: Sequence[str], words: list[str]) -> str:
    """An answer that meets both constraints."""
    if "keyword" in pair:
        words = [drawn.keyword, *words[1:]]
    separator = "\n* " if "bullets" in pair else " " if "commas" in pair else ", "
    text = ("* " if "bullets" in pair else "") + separator.join(words)
    if "title" in pair:
        text = f"<<{drawn.kind}>>\n{text}"
    if "postscript" in pair:
        text += "\nP.S. Enjoy."
    if "end" in pair:
        text += f"\n{drawn.end}"
    return f'"{text}"' if "quotation" in pair else text
