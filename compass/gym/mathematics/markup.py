r"""LaTeX and Markdown that only change the looks of an answer, taken off before it is read.

What was inside `\text{...}` is kept between `TEXT_BEGINS` and `TEXT_ENDS`: there letters are words,
outside they are variables.
"""

from __future__ import annotations

import re

from compass.gym.mathematics.characters import ascii_mathematics

TEXT_BEGINS, TEXT_ENDS = "\x02", "\x03"

_BLANK = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits"
    r"|checkmark|quad|qquad|thinspace|medspace|thickspace|space|hfill|break|newline|noindent"
    r"|boldmath|normalsize|large|Large|huge|Huge|bf|it|rm|square)(?![A-Za-z])\s?\.?"
    r"|\\[hv]space\*?\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}|\\[,;:> ]|\\(?=\s)"
)
_TIGHT = re.compile(r"\\!|\\mathstrut|\\null|\\phantom\s*\{[^{}]*\}")
_ROW_END = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$")
_WRAPPERS = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt|mathcal|mathscr|mathnormal|underline|uline|emph"
    r"|fbox|framebox|boxed|ensuremath|underset\s*\{[^{}]*\}|textcolor\s*\{[^{}]*\}|colorbox"
    r"\s*\{[^{}]*\}|mathop|mathrel|mathord|hbox)(?![A-Za-z])\s*(?=\{)"
)
_ROMAN = re.compile(r"\\(?:mathrm|operatorname|rm)\*?\s*\{\s*([^{}]*)\}")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|textup|mbox)\*?\s*\{([^{}]*)\}"
)
_SINGLE_DIGITS = re.compile(r"\\[dtc]?frac\s*(?:(\d)\s*(\d)|(\d)\s*(?=\{))")
_SURD = re.compile(r"\\surd\s*(?:\\overline\s*)?(\d+(?:\.\d+)?|[A-Za-z])?")
_RECURRING_BAR = re.compile(r"\.(\d*)\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?")
_RECURRING_DOTS = re.compile(
    r"\.(\d*)\\dot\s*\{?\s*(\d)\s*\}?(?:(\d*)\\dot\s*\{?\s*(\d)\s*\}?)?(?!\d)"
)
_ELLIPSIS = re.compile(r"\\(?:ldots|dots|dotsc|cdots)(?![A-Za-z])")
_THOUSANDS_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3})")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?:s)?(?![A-Za-z])")
_MARKDOWN = re.compile(r"\*\*(?!\s*[\w(])|(?<![\w)}\s])\s*\*\*|^\s*\*\*|`")
_EMPHASIS = re.compile(r"\*\*([^*]+)\*\*|__([^_]+)__")
_SYNONYMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:leq|leqslant|leqq)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\(?:neq|not\s*=)(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:varnothing|O(?=\s*$))(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:approxeq|simeq|thickapprox)(?![A-Za-z])"), r"\\approx "),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\}"),
    (re.compile(r"\\lbrack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\\var(?=phi|epsilon|theta)"), r"\\"),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), f"{TEXT_BEGINS}or{TEXT_ENDS}"),
    (re.compile(r"\\(?:land|wedge)(?![A-Za-z])"), f"{TEXT_BEGINS}and{TEXT_ENDS}"),
)


_ASCII_RELATIONS = (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne "))


def plain_markup(text: str) -> str:
    """The answer without what does not change its meaning, in ASCII signs where there are any."""
    text = ascii_mathematics(text)
    text = _EMPHASIS.sub(lambda found: found[1] or found[2], text)
    text = _THOUSANDS_COMMA.sub(",", text).replace("`", " ")
    for plain, command in _ASCII_RELATIONS:
        text = text.replace(plain, command)
    if "\\" not in text and "$" not in text and '"' not in text:
        return text.strip(" \t\n")
    text = _ROW_END.sub("\x04", text).replace("\\$", "\x06").replace("\\%", "%").replace("\\_", "_")
    text = _DELIMITERS.sub(" ", text).replace('"', " ").replace("\\#", "#").replace("\\&", "&")
    text = _TIGHT.sub("", text)
    for pattern, plain in _SYNONYMS:
        text = pattern.sub(plain, text)
    text = _TEXT.sub(f"{TEXT_BEGINS}\\1{TEXT_ENDS}", text)
    text = _ROMAN.sub(_roman, text)
    text = _WRAPPERS.sub("", _BLANK.sub(" ", text))
    text = _DEGREES.sub(" \x05 ", text)
    text = _SINGLE_DIGITS.sub(_braced_fraction, text)
    text = _SURD.sub(lambda found: f"\\sqrt{{{found[1]}}}" if found[1] else "\\sqrt ", text)
    text = _RECURRING_BAR.sub(r".\1(\2)", text)
    text = _RECURRING_DOTS.sub(_recurring, text)
    text = _ELLIPSIS.sub("...", text)
    return text.replace("\x04", "\\\\").replace("\x06", "$").strip()


def _roman(found: re.Match[str]) -> str:
    """`\\mathrm{e}` is the number e, `\\mathrm{cm}` a word."""
    content = found[1].strip()
    if content in ("e", "i", "d"):
        return f" {content} "
    return f"{TEXT_BEGINS}{content}{TEXT_ENDS}"


def _braced_fraction(found: re.Match[str]) -> str:
    if found[1]:
        return f"\\frac{{{found[1]}}}{{{found[2]}}}"
    return f"\\frac{{{found[3]}}}"


def _recurring(found: re.Match[str]) -> str:
    """Dots over the first and the last digit of the period, or over its only one."""
    fixed, first, middle, last = found.groups()
    return f".{fixed}({first}{middle or ''}{last})" if last else f".{fixed}({first})"
