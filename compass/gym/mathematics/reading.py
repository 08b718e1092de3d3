r"""A piece of text that is known to be the whole answer, read as the records of `answer`.

Nothing is read in part: what is left over makes the answer unreadable, or words where there are
any. Order of trials: choice letters, words, clocks and dates, several answers, then one answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sympy

from compass.gym.mathematics import functions, words
from compass.gym.mathematics.answer import (
    Answer,
    Choice,
    Group,
    Ratio,
    UnreadableError,
    Value,
    Words,
)
from compass.gym.mathematics.calculus import is_calculus, parse_calculus
from compass.gym.mathematics.markup import TEXT_BEGINS, TEXT_ENDS, plain_markup
from compass.gym.mathematics.relations import joined_relations, read_relation, relation_signs
from compass.gym.mathematics.structures import read_structure, split_at
from compass.gym.mathematics.tokens import Token, tokenize
from compass.gym.mathematics.value import read_value

MAX_ANSWER_CHARACTERS = 1_000
"""What is longer is no final answer."""

_LABEL = re.compile(
    r"^\W*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|solution)s?(?:\s+is|\s*[:=])[\s:]*",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer|statement)\s+)?"
    r"(?:\(\s*([A-J])\s*\)(?![\s.:]*(?:[-+*/^=<>!|,]|\\(?:cdot|times|le|ge|ne|cup|cap)\b))(?:[\s.:]+.*)?"
    r"|([A-J])\s*\).*|([A-J])[.:](?:\s.*)?)",
    re.DOTALL | re.IGNORECASE,
)
"""A letter in brackets with a text behind it; `(A) + 1` is a formula."""
_ABOUT = re.compile(r"^(?:about|approximately|roughly|exactly)\s+(?=\S)", re.IGNORECASE)
_LETTERS = re.compile(
    r"(?:(?i:options?|choices?)\s+)?([A-J](?:\s*(?:,|;|and|&)?\s*[A-J])*)", re.DOTALL
)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::\d{2})?\s*(?:[ap]\.?m\.?)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}")
_TRAILING = " \t\n.,;:。،"


def read_answer(text: str) -> Answer:
    """The answer that `text` is, as a whole. Errors: `UnreadableError`."""
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise UnreadableError(f"{len(text)} characters are too long for an answer")
    plain = _trimmed(plain_markup(text))
    if not plain:
        raise UnreadableError("it is empty")
    unmarked = plain.replace(TEXT_BEGINS, " ").replace(TEXT_ENDS, " ").strip()
    choice = _choice(unmarked)
    if choice is not None:
        return choice
    if _DATE.fullmatch(unmarked) or _CLOCK.fullmatch(unmarked):
        return _clock_or_date(unmarked)
    if is_calculus(plain):
        return Value(expression=parse_calculus(plain))
    tokens = tokenize(plain)
    try:
        return read_tokens(tokens)
    except UnreadableError:
        return _words_with_signs(tokens)


def _trimmed(plain: str) -> str:
    plain = _LABEL.sub("", _without_stops(plain), count=1)
    plain = _ABOUT.sub("", plain)
    if plain.startswith("'") or plain.endswith("*"):
        plain = plain.strip("'* ")
    return _without_stops(plain)


def _without_stops(plain: str) -> str:
    """Without the punctuation around it; the dots of `0.333...` belong to the number."""
    stripped = plain.strip(_TRAILING)
    leading_dot = re.match(r"\W*?(?=\.\d)", plain)
    if leading_dot:
        stripped = (
            plain[leading_dot.end() :].strip(" \t\n")
            if plain.startswith(tuple(" \n\t."))
            else stripped
        )
        stripped = stripped.rstrip(_TRAILING)
    return f"{stripped}..." if plain.rstrip(" \t\n,;").endswith("...") else stripped


def read_tokens(tokens: Sequence[Token]) -> Answer:
    """One answer, or several with commas, `and` or `or` between them."""
    said = _only_words(tokens) if tokens else None
    if said is not None:
        return said
    if any(token.text in ("pm", "mp") and token.kind == "command" for token in tokens):
        return _both_signs(tokens)
    parts, joints = split_at(tokens, _is_joint)
    if len(parts) > 1:
        if not parts[0] or not parts[-1]:
            raise UnreadableError("it begins or ends between two answers")
        return _several([part for part in parts if part], joints)
    if relation_signs(tokens):
        return read_relation(tokens, read_tokens)
    return _one(tokens)


def _one(tokens: Sequence[Token]) -> Answer:
    structure = read_structure(tokens, read_tokens)
    if structure is not None:
        return structure
    parts, _ = split_at(tokens, lambda token: token.text == ":")
    if len(parts) > 1:
        terms = tuple(read_value(part) for part in parts)
        text = ":".join(token.text for token in tokens if token.text != ":")
        return Ratio(terms=terms, text=text, is_clock=False)
    return read_value(tokens)


def _is_joint(token: Token) -> bool:
    if token.kind == "word":
        return token.text.lower() in ("and", "or")
    return token.kind == "sign" and token.text in (",", ";", "&")


def _several(parts: list[Sequence[Token]], joints: list[str]) -> Answer:
    if not parts:
        raise UnreadableError("there is nothing between the commas")
    items = [read_tokens(part) for part in parts]
    joined = joined_relations(items, "or" if "or" in joints else "and")
    if joined is not None:
        return joined
    if any(isinstance(item, Words) for item in items) and any(
        not isinstance(item, Words) for item in items
    ):
        raise UnreadableError("words among numbers")
    return items[0] if len(items) == 1 else Group(kind="list", items=tuple(items))


def _both_signs(tokens: Sequence[Token]) -> Answer:
    r"""`a \pm b` is the two answers."""
    upper, lower = {"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"}
    answers = [
        read_tokens(
            [
                Token("sign", signs[token.text])
                if token.kind == "command" and token.text in signs
                else token
                for token in tokens
            ]
        )
        for signs in (upper, lower)
    ]
    upper_answer, lower_answer = answers
    match upper_answer, lower_answer:
        case Group(kind="list" | "set"), Group(kind="list" | "set"):
            pairs = zip(upper_answer.items, lower_answer.items, strict=True)
            items = [item for pair in pairs for item in dict.fromkeys(pair)]
            return Group(kind=upper_answer.kind, items=tuple(items))
    return Group(kind="list", items=tuple(answers))


def _choice(plain: str) -> Choice | None:
    if found := _CHOICE.fullmatch(plain):
        letter = found[1] or found[2] or found[3]
        return Choice(letters=frozenset(letter.upper())) if letter.isupper() else None
    if found := _LETTERS.fullmatch(plain):
        letters = re.findall("[A-J](?![a-z])", found[1])
        if len(set(letters)) == len(letters) and len(letters) <= 5:
            return Choice(letters=frozenset(letters))
    return None


def _clock_or_date(plain: str) -> Answer:
    text = re.sub(r"[\s.]+(?=[ap])|\s+", "", plain.lower()).replace(".", "")
    if not _CLOCK.fullmatch(plain):
        return Words(text=text)
    return Ratio(terms=(), text=text, is_clock=True)


def _only_words(tokens: Sequence[Token]) -> Answer | None:
    """Words alone; a single short one, or single letters, may also be a product of variables."""
    while len(tokens) > 1 and tokens[-1].text in ("!", "?", ".") and _ends_in_word(tokens):
        tokens = tokens[:-1]
    if not all(token.kind == "word" for token in tokens):
        return _function_name(tokens)
    said = " ".join(token.text for token in tokens)
    single = len(tokens) == 1
    if single and said.lower() in functions.CONSTANTS:
        return Value(expression=functions.CONSTANTS[said.lower()]) if said != "I" else None
    if single and len(said) == 1 and said.isascii():
        return Value(expression=sympy.Symbol(said)) if tokens[0].marked else None
    if any(token.marked for token in tokens):
        return Words(text=said.casefold())
    if single and _is_symbol(said):
        return None
    if all(len(token.text) == 1 for token in tokens) or (single and len(said) <= 3):
        product = sympy.Integer(1)
        for letter in said.replace(" ", ""):
            product = product * functions.CONSTANTS.get(letter, sympy.Symbol(letter))
        spelled = not single or not words.is_plain_word(said)
        return Words(text=said.casefold(), product=product, spelled=spelled)
    if any(len(token.text) > 1 for token in tokens) and not _has_function(tokens):
        if {token.text.lower() for token in tokens} & {"and", "or"} and _all_symbols(tokens):
            return None
        return Words(text=said.casefold())
    return None


def _ends_in_word(tokens: Sequence[Token]) -> bool:
    """`Yes!` is said loudly; `n!` is a factorial."""
    word = tokens[-2]
    return word.kind == "word" and (word.marked or words.is_plain_word(word.text))


def _all_symbols(tokens: Sequence[Token]) -> bool:
    return all(len(token.text) == 1 or _is_joint(token) for token in tokens)


def _is_symbol(word: str) -> bool:
    return len(word) == 1 or word in functions.GREEK or word.lower() in functions.CONSTANTS


def _has_function(tokens: Sequence[Token]) -> bool:
    return len(tokens) > 1 and any(token.text in functions.NAMES for token in tokens)


def _function_name(tokens: Sequence[Token]) -> Answer | None:
    r"""`\sin` alone is a name."""
    if len(tokens) == 1 and tokens[0].kind == "command" and tokens[0].text in functions.NAMES:
        return Words(text=tokens[0].text)
    return None


def _words_with_signs(tokens: Sequence[Token]) -> Answer:
    """What holds real words is compared as it is written: `July 4`, `I and II`, `△ABC`."""
    is_said = any(
        token.kind == "word"
        and (
            token.marked
            or (len(token.text) > 2 and (token.text.isupper() or words.is_plain_word(token.text)))
        )
        for token in tokens
    )
    if not is_said or relation_signs(tokens):
        raise UnreadableError("it is neither a formula nor words")
    if tokens[-1].text in ("!", "?"):
        return read_tokens(tokens[:-1]) if len(tokens) > 1 else Words(text=tokens[0].text)
    split_at(tokens, lambda _: False)  # refuses brackets that do not close
    text = "".join(
        f" {token.text}" if token.spaced or token.kind == "word" else token.text for token in tokens
    ).strip()
    has_commands = any(token.kind == "command" for token in tokens)
    return Words(text=text if has_commands else text.casefold())
