"""Every kind of constraint tells answers that follow it from answers that do not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from compass.gym.instructions.constraint import KINDS, BadConstraintsError, read_constraints
from compass.gym.instructions.counting import num_capital_words, num_sentences, num_words
from compass.gym.instructions.language import detected
from tests.gym.instructions.made_answers import LANGUAGE_SAMPLES, MADE

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["c++ (new)", "Story"]}, {"keywords": ["ไทย"]}],
    "keywords:frequency": [
        {"keyword": "a.b", "frequency": 3, "relation": "at least"},
        {"keyword": "war", "frequency": 2.0, "relation": "less than"},
    ],
    "keywords:forbidden_words": [
        {"forbidden_words": ["rock", "c++"]},
        {"forbidden_words": ["ไทย"]},
    ],
    "keywords:letter_frequency": [
        {"letter": "#", "let_frequency": 4, "let_relation": "at least"},
        {"letter": "Q", "let_frequency": 2, "let_relation": "less than"},
    ],
    "language:response_language": [{"language": name} for name in LANGUAGE_SAMPLES],
    "length_constraints:number_sentences": [
        {"num_sentences": 5, "relation": "less than"},
        {"num_sentences": 3, "relation": "at least"},
    ],
    "length_constraints:number_paragraphs": [{"num_paragraphs": 1}, {"num_paragraphs": 4}],
    "length_constraints:number_words": [
        {"num_words": 300, "relation": "at least"},
        {"num_words": 10, "relation": "around"},
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "booster"}
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": 3}],
    "detectable_content:postscript": [{"postscript_marker": m} for m in ("P.S.", "P.P.S")],
    "detectable_format:number_bullet_lists": [{"num_bullets": 3}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": 2}],
    "detectable_format:multiple_sections": [{"section_spliter": "PART (x)", "num_sections": 2}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "Say it.\nTwice"}],
    "startend:end_checker": [{"end_phrase": "Is that all?"}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 3, "capital_relation": "at most"},
        {"capital_frequency": 3, "capital_relation": "exactly"},
    ],
}


def holds(name: str, arguments: dict[str, Any], answer: str) -> bool:
    [one] = read_constraints({"instruction_id_list": [name], "kwargs": [arguments]})
    return one.holds(answer)


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_follows_or_does_not(name: str) -> None:
    for arguments in ARGUMENTS.get(name, [{}]):
        for wanted in (True, False):
            answer = MADE[name](arguments, wanted)
            assert holds(name, arguments, answer) is wanted, (arguments, answer)
        assert not holds(name, arguments, " \n"), "an empty answer follows nothing"


def test_answers_are_told_apart_at_the_edges() -> None:
    two = {"num_paragraphs": 2}
    assert holds("length_constraints:number_paragraphs", two, "***\na * * * b\n***\n")
    assert not holds("length_constraints:number_paragraphs", two, "a\n***\n***\nb")
    assert not holds("detectable_format:number_bullet_lists", {"num_bullets": 0}, "- a")
    assert holds("detectable_format:number_bullet_lists", {"num_bullets": 2}, "  - a\n\n\n* b\n*")
    assert not holds("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "* *")
    assert holds(
        "detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**"
    )
    assert not holds("combination:two_responses", {}, "a******b******c")
    assert not holds("combination:two_responses", {}, "a************b")
    assert holds("combination:two_responses", {}, "******a******b******")
    assert not holds("punctuation:no_comma", {}, "所以，是")
    assert not holds("keywords:forbidden_words", {"forbidden_words": ["ไทย"]}, "ประเทศไทยสวย")
    assert holds("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocks and brock")
    assert not holds("language:response_language", {"language": "de"}, "1 2 3 !")
    assert not holds("detectable_format:json_format", {}, "[" * 100_000)
    assert not holds("detectable_format:json_format", {}, "9" * 10_000)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("no mark", 1),
        ("One. Two! Three?", 3),
        ('He said: "Go." Then (it rained.) End', 3),
        ("Dr. J. Smith met Mrs. Jones at 3.30 p.m. today, e.g. here.", 2),
        ("So am I. And you?", 2),
        ("Well... yes?! No.", 3),
        ("1. First thing.\n2. Second thing.\nThere were 12. Good.", 4),
        ("今天很好。明天呢？好！", 3),
        ("मैं आया। वह गया।", 2),
        (". . .", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_does(text: str, number: int) -> None:
    assert num_sentences(text) == number


def test_words_are_counted_with_their_marks() -> None:
    assert num_words("It's a well-known café, 3 times") == 8
    assert num_words("हिन्दी में तीन") == 3
    assert num_capital_words("I DON'T know NASA's U.S. WELL-KNOWN aBC 42") == 4


def test_a_language_is_told_the_same_way_every_time() -> None:
    assert {detected("alpha beta ja nein oui") for _ in range(20)} == {
        detected("alpha beta ja nein oui")
    }


@pytest.mark.parametrize(
    "unit", ["[", "<<", "*", "\n", "p.", "* \n", "- ", "A.", '"', "`", " ", "a. "]
)
def test_no_answer_takes_a_checker_long(unit: str) -> None:
    answer = unit * (200_000 // len(unit)) + "x"
    for name in KINDS:
        arguments = ARGUMENTS.get(name, [{}])[0]
        started = time.process_time()
        holds(name, arguments, answer)
        assert time.process_time() - started < 2, name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs `instruction_id_list` and `kwargs`"),
        ({"instruction_id_list": []}, "at least one name"),
        ({"instruction_id_list": ["a:b"], "kwargs": [{}]}, "has the constraint 'a:b'; those"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one object for each"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [1]}, "must be an object"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": "[{"}, "or its JSON"),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": []}]},
            "`keywords` of keywords:existence is .*; it must be a list of texts",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "more than"}],
            },
            "`relation` of .* is 'more than'; it must be one of less than, at least",
        ),
        (
            {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]},
            "'xx'; it must be one of af, ar",
        ),
        ({"ground_truth": '{"func_name": "validate_choice"}'}, "the constraint 'validate_choice'"),
        ({"ground_truth": "no literal ("}, "needs `instruction_id_list`"),
    ],
)
def test_a_row_that_cannot_be_checked_says_why(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConstraintsError, match=message):
        read_constraints(row)


@pytest.mark.parametrize(
    ("ground_truth", "name", "good", "bad"),
    [
        (
            '{"func_name": "verify_keyword_frequency", "N": 2, "word": "so", "letter": null}',
            "keywords:frequency",
            "so so",
            "so so so",
        ),
        (
            '{"func_name": "validate_word_constraint", "N": 20, "quantifier": "around"}',
            "length_constraints:number_words",
            "w " * 22,
            "w " * 23,
        ),
        (
            "[{'instruction_id': ['punctuation:no_comma'], 'kwargs': [None]}]",
            "punctuation:no_comma",
            "a",
            "a,",
        ),
    ],
)
def test_constraints_of_open_instruct_are_read(
    ground_truth: str, name: str, good: str, bad: str
) -> None:
    for found in (
        read_constraints({"ground_truth": ground_truth}),
        read_constraints({}, ground_truth),
    ):
        [one] = found
        assert (one.name, one.holds(good), one.holds(bad)) == (name, True, False)
