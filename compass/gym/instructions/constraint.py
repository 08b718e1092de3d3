"""A row's constraints: which they are, and whether an answer follows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compass.gym.instructions import arguments as of
from compass.gym.instructions import layout, words
from compass.gym.instructions.open_instruct import FORMS, named_constraint, read_text


class BadConstraintsError(Exception):
    """A row's constraints cannot be checked, whatever the answer is; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of constraint."""

    holds: Callable[..., bool]
    arguments: Mapping[str, of.Argument]
    """All of them are needed."""


def _kind(holds: Callable[..., bool], **arguments: of.Argument) -> Kind:
    return Kind(holds=holds, arguments=MappingProxyType(arguments))


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "keywords:existence": _kind(words.existence, keywords=of.texts),
        "keywords:frequency": _kind(
            words.frequency, keyword=of.text, frequency=of.count, relation=of.relation
        ),
        "keywords:forbidden_words": _kind(words.forbidden_words, forbidden_words=of.texts),
        "keywords:letter_frequency": _kind(
            words.letter_frequency,
            letter=of.character,
            let_frequency=of.count,
            let_relation=of.relation,
        ),
        "language:response_language": _kind(words.response_language, language=of.language),
        "length_constraints:number_sentences": _kind(
            words.number_sentences, num_sentences=of.count, relation=of.relation
        ),
        "length_constraints:number_paragraphs": _kind(
            layout.number_paragraphs, num_paragraphs=of.place
        ),
        "length_constraints:number_words": _kind(
            words.number_words, num_words=of.count, relation=of.relation
        ),
        "length_constraints:nth_paragraph_first_word": _kind(
            layout.first_word,
            num_paragraphs=of.place,
            nth_paragraph=of.place,
            first_word=of.text,
        ),
        "detectable_content:number_placeholders": _kind(
            layout.number_placeholders, num_placeholders=of.count
        ),
        "detectable_content:postscript": _kind(layout.postscript, postscript_marker=of.text),
        "detectable_format:number_bullet_lists": _kind(layout.number_bullets, num_bullets=of.count),
        "detectable_format:constrained_response": _kind(layout.constrained_response),
        "detectable_format:number_highlighted_sections": _kind(
            layout.number_highlights, num_highlights=of.count
        ),
        "detectable_format:multiple_sections": _kind(
            layout.multiple_sections, section_spliter=of.text, num_sections=of.count
        ),
        "detectable_format:json_format": _kind(layout.json_format),
        "detectable_format:title": _kind(layout.title),
        "combination:two_responses": _kind(layout.two_responses),
        "combination:repeat_prompt": _kind(layout.repeat_prompt, prompt_to_repeat=of.text),
        "startend:end_checker": _kind(layout.end_phrase, end_phrase=of.text),
        "startend:quotation": _kind(layout.quotation),
        "change_case:capital_word_frequency": _kind(
            words.capital_words, capital_frequency=of.count, capital_relation=of.relation
        ),
        "change_case:english_capital": _kind(words.english_capital),
        "change_case:english_lowercase": _kind(words.english_lowercase),
        "punctuation:no_comma": _kind(words.no_comma),
    }
)
"""IFEval's 25 kinds, by its names."""

FIELDS = ("instruction_id_list", "kwargs", "ground_truth")
"""Fields of a row that are read here."""


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One constraint of a row."""

    name: str
    arguments: Mapping[str, Any]

    def holds(self, answer: str) -> bool:
        """Whether `answer` follows it. An empty one follows nothing."""
        return bool(answer.strip()) and KINDS[self.name].holds(answer, **self.arguments)


def read_constraints(row: Mapping[str, Any], answer: str | None = None) -> tuple[Constraint, ...]:
    """The constraints of a row: `instruction_id_list` and `kwargs` as IFEval has them, or what
    open-instruct has in `ground_truth`, which may have been read as the row's `answer`.

    Errors: `BadConstraintsError`.
    """
    names, given = row.get("instruction_id_list"), row.get("kwargs")
    if names is None:
        names, given = _open_instruct(row.get("ground_truth", answer))
    if isinstance(given, str):
        given = _json(given)
    if not isinstance(names, list | tuple) or not names:
        raise BadConstraintsError("needs an `instruction_id_list` with at least one name")
    if given is None:
        given = [None] * len(names)
    if not isinstance(given, list | tuple) or len(given) != len(names):
        raise BadConstraintsError(
            f"needs `kwargs` with one object for each of its {len(names)} constraints"
        )
    return tuple(_constraint(name, of_it) for name, of_it in zip(names, given, strict=True))


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadConstraintsError("needs `kwargs` that are a list, or its JSON") from None


def _open_instruct(written: object) -> tuple[Sequence[object], Sequence[object] | None]:
    value = read_text(written) if isinstance(written, str) else written
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and "instruction_id" in value:
        return value["instruction_id"], value.get("kwargs")
    if not isinstance(value, Mapping) or "func_name" not in value:
        raise BadConstraintsError("needs `instruction_id_list` and `kwargs`")
    name = value["func_name"]
    if name not in FORMS:
        raise BadConstraintsError(
            f"has the constraint {name!r}; those that can be checked are {', '.join(FORMS)}"
        )
    of_it = named_constraint(value)
    return [of_it[0]], [of_it[1]]


def _constraint(name: object, given: object) -> Constraint:
    if not isinstance(name, str) or name not in KINDS:
        raise BadConstraintsError(
            f"has the constraint {name!r}; those that can be checked are {', '.join(KINDS)}"
        )
    if given is not None and not isinstance(given, Mapping):
        raise BadConstraintsError(f"`kwargs` of {name} are {given!r}; they must be an object")
    arguments = {}
    for argument, read in KINDS[name].arguments.items():
        value = (given or {}).get(argument)
        try:
            arguments[argument] = read(value)
        except ValueError as error:
            raise BadConstraintsError(
                f"`{argument}` of {name} is {value!r}; it must be {error}"
            ) from None
    return Constraint(name=name, arguments=MappingProxyType(arguments))


def variants(answer: str) -> tuple[str, ...]:
    """The answer as the loose rule has it: also without its first line, its last or both, each
    with and without asterisks (arXiv 2311.07911, section 2.2)."""
    lines = answer.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(part).strip() for part in cut]
    return tuple(dict.fromkeys(texts + [text.replace("*", "") for text in texts]))
