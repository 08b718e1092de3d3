r"""One alphabet for all scripts: digits, signs, superscripts and fractions as ASCII and LaTeX.

`ascii_mathematics("３½ ≤ x² ·π")` is `3\frac{1}{2} \le  x^{2} \cdot \pi `.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "times": "×✕", "cdot": "·⋅∙", "le": "≤≦⩽", "ge": "≥≧⩾", "ne": "≠", "approx": "≈≃",
        "equiv": "≡", "to": "→", "implies": "⇒", "pm": "±", "mp": "∓", "infty": "∞",
        "emptyset": "∅", "cup": "∪", "cap": "∩", "in": "∈", "angle": "∠", "triangle": "△",
        "perp": "⊥", "parallel": "∥", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋",
        "lceil": "⌈", "rceil": "⌉", "sum": "∑", "int": "∫", "prod": "∏", "surd": "√",
        "imath": "ı", "mathbb{R}": "ℝ", "checkmark": "✓✔✅",
    }
)  # fmt: skip
"""LaTeX commands, and the signs that they are."""
_PLAIN_SIGNS: Mapping[str, str] = MappingProxyType(
    {
        "-": "−–—‐‑﹣", "/": "÷∕⁄", "=": "＝", ".": "٫", ",": "٬،、", ". ": "。।۔។", "%": "％٪",
        '"': "“”„«»", "'": "‘’′", " ^\\circ ": "°º∘",
    }
)  # fmt: skip
_SIGNS: Mapping[int, str] = MappingProxyType(
    {ord(sign): f" \\{name} " for name, signs in _COMMANDS.items() for sign in signs}
    | {ord(sign): plain for plain, signs in _PLAIN_SIGNS.items() for sign in signs}
)
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿˣ", "0123456789+-=()nx", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ", "0123456789+-nx", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_DOTTED_DIGIT = re.compile("([0-9])\u0307")
_BARRED_DIGITS = re.compile("((?:[0-9]\u0305)+)")
_SINGLE_MARK = {"º", "ª"}
"""Compatibility characters that NFKC would turn into plain letters."""


def ascii_mathematics(text: str) -> str:
    """The same text with every sign that has an ASCII or LaTeX form written in it.

    Words of other scripts stay; their digits become 0-9. Invisible characters are dropped.
    """
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{_mapped(run[0], _SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{_mapped(run[0], _SUBSCRIPTS)}}}", text)
    text = "".join(map(_plain, text))
    text = _DOTTED_DIGIT.sub(r"\\dot{\1}", text)
    text = _BARRED_DIGITS.sub(lambda run: f"\\overline{{{run[0].replace(chr(0x305), '')}}}", text)
    return text.translate(_SIGNS)


def _mapped(run: str, table: Mapping[str, str]) -> str:
    return "".join(table[character] for character in run)


def _plain(character: str) -> str:
    if character.isascii() or character in _SINGLE_MARK:
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    if category == "No" and (fraction := _vulgar_fraction(character)):
        return fraction
    if greek := _greek_letter(character):
        return greek
    if ord(character) in _SIGNS:
        return character
    if category == "Zs":
        return " "
    if category == "Lo" and unicodedata.decomposition(character).startswith("<compat>"):
        return character  # Thai and Lao vowels, which NFKC would take apart
    return unicodedata.normalize("NFKC", character)


def _vulgar_fraction(character: str) -> str:
    numerator, slash, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return f"\\frac{{{numerator}}}{{{denominator}}}" if slash and denominator else ""


def _greek_letter(character: str) -> str:
    words = unicodedata.name(character, "").split()
    if words[:1] != ["GREEK"] or words[2:3] != ["LETTER"] or len(words) != 4:
        return ""
    name = words[3].lower().replace("lamda", "lambda")
    return f"\\{name.capitalize() if words[1] == 'CAPITAL' else name} "
