"""Which option a whole answer means: what it marks, announces, or says last."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compass.gym.choice.options import index_of, option_meant
from compass.gym.mathematics.marks import marked_answer

_MAX_TAIL = 4_000
"""Characters from the end that are looked at where nothing is marked."""

_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice|réponse|respuesta|resposta|antwort|jawaban\w*|jawapan\w*|pilihan"
    r"|đáp án|sagot|ответ)\b"
    r"|คำตอบ|ข้อ|答案|答え|答|选项|選項|选|選|정답|답|উত্তর|उत्तर|الجواب|الإجابة|အဖြေ",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![A-Za-z0-9'’\-])([A-Z])(?![A-Za-z0-9'’\-])")  # noqa: RUF001 (an apostrophe)
_ARTICLE = re.compile(r" [a-z]")
_JOINED = re.compile(
    r"[\s*)\]]*(?:,|/|&|\band\b|\bor\b|และ|หรือ|和|或|dan|atau|và)[\s*(\[]*[A-Z](?![A-Za-z])"
)
_DENIED = re.compile(r"\b(?:not|never|cannot|bukan|không phải|hindi)\b|n't|ไม่|不是")
_SAYS = re.compile(r"\b(?:is|are|be|es|est|ist|é|adalah|ialah|là|ay)\b|คือ|是|为|は|는|은|[:=]")
_MAX_GAP = 60
"""Characters between the word that announces and the letter."""


def final_option(text: str, options: Sequence[str], *, finished: bool) -> int | None:
    """The index of the option that an answer means; None when it means none, or several."""
    marked = marked_answer(text, finished=finished)
    if marked is not None:
        meant = {option_meant(part, options) for part in marked.parts}
        return meant.pop() if len(meant) == 1 else None
    text = text[-_MAX_TAIL:].strip()
    whole = option_meant(text, options)
    if whole is not None:
        return whole
    for found in reversed(list(_ANNOUNCED.finditer(text))):
        said = _announced(text[found.end() :].partition("\n")[0], options)
        if said is not None:
            return said
    return option_meant(text.rpartition("\n")[2], options)


def _announced(line: str, options: Sequence[str]) -> int | None:
    """What the rest of a line says that begins behind "answer"."""
    letter = _LETTER.search(line[:_MAX_GAP])
    while letter and letter[1] in "AI" and _ARTICLE.match(line, letter.end()):
        letter = _LETTER.search(line[:_MAX_GAP], letter.end())  # the article, or the pronoun
    if letter:
        settled = not _DENIED.search(line[: letter.start()]) and not _JOINED.match(
            line, letter.end()
        )
        return index_of(letter[1], options) if settled else None
    says = _SAYS.search(line)
    return option_meant(line[says.end() :], options) if says else None
