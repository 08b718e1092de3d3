"""In which language a text is written: langdetect, and scripts where it knows no language."""

from __future__ import annotations

import unicodedata
from types import MappingProxyType

_NAMES = """
af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl
no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh
"""
LANGUAGES = frozenset(_NAMES.split())
"""What langdetect 1.0.9 tells apart; its zh-cn and zh-tw are both zh."""

SCRIPTS = MappingProxyType({"km": "KHMER", "lo": "LAO", "my": "MYANMAR"})
"""Languages it does not know, which have a script of their own."""


def is_in(text: str, language: str) -> bool:
    """Whether most of `text` is in the language; False where there are no letters."""
    if language in SCRIPTS:
        letters = [char for char in text if char.isalpha()]
        ours = sum(unicodedata.name(char, "").startswith(SCRIPTS[language]) for char in letters)
        return 2 * ours > len(letters)
    return detected(text) == language


def detected(text: str) -> str | None:
    """The likeliest language; None where there is nothing to go by."""
    from langdetect.lang_detect_exception import LangDetectException

    from compass.gym.instructions.profiles import FACTORY

    detector = FACTORY.create()
    detector.append(text)
    try:
        return str(detector.detect()).partition("-")[0]
    except LangDetectException:
        return None
