"""From a completion's text to right or wrong."""

from __future__ import annotations

from functools import lru_cache

from compass.gym.mathematics.answer import Answer, Group, UnreadableError
from compass.gym.mathematics.compare import same_answer
from compass.gym.mathematics.marks import Marked, marked_answer
from compass.gym.mathematics.prose import stated_answer
from compass.gym.mathematics.reading import read_answer

_MAX_PARTS = 50
"""Boxes in a row that are one answer."""


@lru_cache(maxsize=256)  # a group's completions share their reference
def read_reference(answer: str) -> Answer:
    r"""A reference answer: all of the text, or what its only box holds.

    Errors: `UnreadableError` with the reason.
    """
    marked = marked_answer(answer, finished=True)
    return read_answer(answer) if marked is None else _read_marked(marked)


def final_answer(text: str, *, finished: bool) -> Answer:
    """The final answer of a text without its thinking. Errors: `UnreadableError`."""
    marked = marked_answer(text, finished=finished)
    if marked is not None:
        return _read_marked(marked)
    stated = stated_answer(text)
    if stated is None:
        raise UnreadableError("nothing in the text is an answer")
    return stated


def _read_marked(marked: Marked) -> Answer:
    if len(marked.parts) > _MAX_PARTS:
        raise UnreadableError(f"{len(marked.parts)} boxes in a row are no answer")
    answers: list[Answer] = []
    for part in marked.parts:
        answer = read_answer(part)
        if not any(same_answer(answer, known) for known in answers):
            answers.append(answer)
    return answers[0] if len(answers) == 1 else Group(kind="list", items=tuple(answers))
