"""Constraints as open-instruct's data sets have them (arXiv 2411.15124), by IFEval's names.

RLVR-IFeval has `{"func_name": ..., "N": ..., ...}` in `ground_truth`, where arguments that a
function does not take are null; later sets have a list with `instruction_id` and `kwargs`, written
as Python.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_Form = tuple[str, Mapping[str, str]]
"""IFEval's name, and its arguments by their names there."""

_RELATION = {"relation": "quantifier"}

FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "verify_keywords": ("keywords:existence", {"keywords": "keyword_list"}),
        "verify_keyword_frequency": ("keywords:frequency", {"keyword": "word", "frequency": "N"}),
        "validate_forbidden_words": (
            "keywords:forbidden_words",
            {"forbidden_words": "forbidden_words"},
        ),
        "verify_letter_frequency": (
            "keywords:letter_frequency",
            {"letter": "letter", "let_frequency": "N"},
        ),
        "validate_response_language": ("language:response_language", {"language": "language"}),
        "verify_paragraph_count": (
            "length_constraints:number_paragraphs",
            {"num_paragraphs": "N"},
        ),
        "validate_word_constraint": (
            "length_constraints:number_words",
            {"num_words": "N"} | _RELATION,
        ),
        "verify_sentence_constraint": (
            "length_constraints:number_sentences",
            {"num_sentences": "N"} | _RELATION,
        ),
        "validate_paragraphs": (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": "N", "nth_paragraph": "i", "first_word": "first_word"},
        ),
        "verify_postscript": (
            "detectable_content:postscript",
            {"postscript_marker": "postscript_marker"},
        ),
        "validate_placeholders": (
            "detectable_content:number_placeholders",
            {"num_placeholders": "N"},
        ),
        "verify_bullet_points": ("detectable_format:number_bullet_lists", {"num_bullets": "N"}),
        "validate_title": ("detectable_format:title", {}),
        "validate_highlighted_sections": (
            "detectable_format:number_highlighted_sections",
            {"num_highlights": "N"},
        ),
        "validate_sections": (
            "detectable_format:multiple_sections",
            {"section_spliter": "section_splitter", "num_sections": "N"},
        ),
        "validate_json_format": ("detectable_format:json_format", {}),
        "validate_repeat_prompt": (
            "combination:repeat_prompt",
            {"prompt_to_repeat": "original_prompt"},
        ),
        "validate_two_responses": ("combination:two_responses", {}),
        "validate_uppercase": ("change_case:english_capital", {}),
        "validate_lowercase": ("change_case:english_lowercase", {}),
        "validate_frequency_capital_words": (
            "change_case:capital_word_frequency",
            {"capital_frequency": "N", "capital_relation": "quantifier"},
        ),
        "validate_end": ("startend:end_checker", {"end_phrase": "end_phrase"}),
        "validate_quotation": ("startend:quotation", {}),
        "validate_no_commas": ("punctuation:no_comma", {}),
    }
)
"""By open-instruct's function. Its `validate_choice` is absent: it never says what the choices are
for."""

_EXACTLY = {"keywords:frequency": "relation", "keywords:letter_frequency": "let_relation"}
"""Kinds for which open-instruct means so many and no more."""


def read_text(written: str) -> object:
    """What JSON or a Python literal says; None for text that is neither."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(written)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def named_constraint(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """IFEval's name and arguments of one row, whose `func_name` is in `FORMS`."""
    name, fields = FORMS[row["func_name"]]
    arguments = {argument: row.get(field) for argument, field in fields.items()}
    if name in _EXACTLY:
        arguments[_EXACTLY[name]] = "exactly"
    return name, arguments
