"""A number equals itself in every notation that can write it, and no other number in any."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.gym.mathematics.boxed_answers import is_right, judged

SCRIPTS = (
    "๐๑๒๓๔๕๖๗๘๙",
    "০১২৩৪৫৬৭৮৯",
    "٠١٢٣٤٥٦٧٨٩",
    "０１２３４５６７８９",
    "०१२३४५६७८९",
    "၀၁၂၃၄၅၆၇၈၉",
)
BOXES = ("\\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "The answer is {}.", "so $x = {}$")
SETTINGS = settings(max_examples=60, deadline=None)


def decimal(value: Fraction) -> str:
    """Its finite decimal; the denominator has no factors but 2 and 5."""
    scaled = value * 10**12
    assert scaled.denominator == 1
    digits = f"{abs(scaled.numerator):013d}"
    text = f"{digits[:-12]}.{digits[-12:]}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text


def recurring(value: Fraction) -> tuple[str, str, str]:
    """Whole part, fixed decimals and period of a positive fraction, by long division."""
    whole, rest = divmod(value.numerator, value.denominator)
    digits, seen = "", {}
    while rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    return str(whole), digits[: seen[rest]], digits[seen[rest] :]


def notations(value: Fraction) -> list[str]:
    sign, size = ("-" if value < 0 else ""), abs(value)
    top, bottom = size.numerator, size.denominator
    forms = [
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\frac{{{sign}{3 * top}}}{{{3 * bottom}}}",
        f"{sign}{top}\\cdot {bottom}^{{-1}}",
        f"{sign}{top} \\div {bottom}",
    ]
    whole, rest = divmod(top, bottom)
    if whole and rest:
        forms += [f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}", f"{sign}{whole} {rest}/{bottom}"]
    if bottom == 1:
        forms += [
            f"{sign}{top}",
            f"{sign}{top:,}",
            f"{sign}{top:,}".replace(",", "\\,"),
            f"{sign}{top}.0",
        ]
        forms += [f"{sign}{top}".translate(str.maketrans("0123456789", s)) for s in SCRIPTS]
    if not set(factors(bottom)) - {2, 5}:
        forms += [decimal(value), f"{decimal(value * 100)}\\%", f"{decimal(value * 1000)}e-3"]
        forms += [
            f"{decimal(value * 10**4)} \\times 10^{{-4}}",
            f"{decimal(value / 1000)} thousand",
        ]
    else:
        head, fixed, period = recurring(size)
        forms += [f"{sign}{head}.{fixed}\\overline{{{period}}}"]
        forms += [f"{sign}{head}.{fixed}{period * 3}..."] if len(period) < 7 else []
    return forms


def factors(number: int) -> list[int]:
    found = [p for p in range(2, number + 1) if number % p == 0]
    return [p for p in found if all(p % q for q in found if q < p)]


RATIONALS = st.builds(
    Fraction,
    st.integers(-5000, 5000),
    st.sampled_from([1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 20, 25]),
)


@SETTINGS
@given(value=RATIONALS)
def test_a_number_equals_itself_in_every_notation(value: Fraction) -> None:
    forms = notations(value)
    for reference, answer in itertools.product(forms, forms):
        assert is_right(reference, f"\\boxed{{{answer}}}"), (reference, answer)


@SETTINGS
@given(value=RATIONALS, other=RATIONALS)
def test_two_numbers_differ_in_every_notation(value: Fraction, other: Fraction) -> None:
    assume(value != other)
    assume(value != other * 100)  # 28 and 28 %
    assume(value * 100 != other)
    for reference, answer in itertools.product(notations(value), notations(other)):
        assert not is_right(reference, f"\\boxed{{{answer}}}"), (reference, answer)


@pytest.mark.parametrize("box", BOXES)
@SETTINGS
@given(value=st.integers(-(10**7), 10**7), exponent=st.integers(-30, 30), other=st.integers(1, 9))
def test_small_and_large_numbers_are_compared_exactly(
    box: str, value: int, exponent: int, other: int
) -> None:
    assume(value != 0)
    reference = f"{value}e{exponent}"
    assert is_right(
        reference, box.format(f"{value} \\times 10^{{{exponent}}}" if "$" in box else reference)
    )
    assert not is_right(reference, box.format(f"{value}{other}e{exponent - 1}"))
    assert not is_right(reference, box.format("0"))


@SETTINGS
@given(items=st.lists(st.integers(-20, 20), min_size=2, max_size=5), data=st.data())
def test_lists_have_multiplicity_tuples_order(items: list[int], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(items))
    one, other = (", ".join(map(str, numbers)) for numbers in (items, shuffled))
    assert is_right(one, f"\\boxed{{{other}}}")
    assert is_right(f"({one})", f"\\boxed{{({other})}}") == (items == shuffled)
    assert not is_right(f"({one})", f"\\boxed{{\\{{{one}\\}}}}")
    longer = f"{one}, {items[0]}"
    assert not is_right(one, f"\\boxed{{{longer}}}")
    assert not is_right(longer, f"\\boxed{{{one}}}")


LETTERS = st.text("abcmnxyzRSV", min_size=1, max_size=1)


@SETTINGS
@given(one=LETTERS, other=LETTERS)
def test_variables_keep_their_case(one: str, other: str) -> None:
    for form in ("\\frac{{{}}}{{{}}}", "{}-2{}", "\\sqrt{{{}}}+{}^2", "{}^{{{}}}"):
        reference, answer = form.format(one, other), form.format(other, one)
        assert is_right(reference, f"\\boxed{{{reference}}}")
        assert is_right(reference, f"\\boxed{{{answer}}}") == (one == other)


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{" + "(1" * 2_000,
        "\\boxed{" + "1 " * 8_000 + "}",
        "1 " * 8_000,
        "\\boxed{" + "1" * 20_000 + " x}",
        "7" * 50_000,
        "\\boxed{" + "(" * 400 + ")" * 400 + "}",
        "\\boxed{1}, " * 4_000,
        "$1" * 5_000,
        "\\boxed{" + "-" * 900 + "1}",
        "\\boxed{" + "2^" * 400 + "2}",
        "\\boxed{3000!!!!!}",
        "\\boxed{9^9^9^9}",
        "\\boxed{e^{e^{e^{e^{10}}}}}",
        "\\boxed{1e999999999}",
        "\\boxed{\\binom{10^9}{10^8}}",
    ],
)
def test_what_is_too_long_or_too_large_is_wrong_not_invalid(completion: str) -> None:
    judgement = judged("5", completion)
    assert judgement.valid
    assert judgement.verdict == 0.0


@pytest.mark.parametrize(
    "reference",
    [
        "12/5 8",
        "3 1/",
        "\\frac{1}{",
        "2 \\to 3",
        "x |",
        "{",
        "???",
        "",
        "5 +",
        "1" * 2_000,
        "\\foo{3}",
    ],
)
def test_a_reference_that_cannot_be_read_whole_is_no_verdict(reference: str) -> None:
    judgement = judged(reference, f"\\boxed{{{reference}}}")
    assert not judgement.valid
    assert "reference answer" in judgement.reason


@pytest.mark.parametrize("reference", ["3 1/2", "5 - 5c", "\\ge 5x", "x = 3", "R/r", "3 xy"])
def test_a_reference_is_read_whole(reference: str) -> None:
    for part in ("2", "3", "1/2", "5", "0", "1"):
        if (reference, part) != ("x = 3", "3"):
            assert not is_right(reference, f"\\boxed{{{part}}}")
