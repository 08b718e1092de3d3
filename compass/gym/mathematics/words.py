"""Words beside numbers: magnitudes that multiply, units that do not, and words that are neither."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType


def listed(words: str) -> frozenset[str]:
    """The words of a line."""
    return frozenset(words.split())


_POWERS_OF_TEN: Mapping[int, str] = MappingProxyType(
    {
        -3: "thousandth thousandths",
        -2: "hundredth hundredths",
        -1: "tenth tenths",
        1: "สิบ 十",
        2: "hundred hundreds ratus trăm ร้อย 百 শত सौ 백",
        3: "thousand thousands mille mil ribu nghìn ngàn พัน 千 হাজার हज़ार हजार 천 libo ထောင်",
        4: "หมื่น 万 萬 만 သောင်း",
        5: "lakh lakhs แสน লাখ লক্ষ लाख သိန်း",
        6: "million millions mn juta triệu ล้าน 百万 মিলিয়ন milyon millón millones သန်း",
        7: "crore crores কোটি करोड़",
        8: "亿 億 억",
        9: "billion billions bn miliar milliard milliards tỷ tỉ พันล้าน 十亿 বিলিয়ন bilyon",
        12: "trillion trillions triliun 万亿 兆",
    }
)  # fmt: skip
MAGNITUDES: Mapping[str, Fraction] = MappingProxyType(
    {
        word: Fraction(10) ** power
        for power, names in _POWERS_OF_TEN.items()
        for word in names.split()
    }
    | {"dozen": Fraction(12), "dozens": Fraction(12)}
)
"""Words that multiply the number before them."""

PERCENT = listed(
    "percent percents percentage pct persen porcentaje prozent procent pourcent "
    "เปอร์เซ็นต์ 퍼센트 パーセント শতাংশ प्रतिशत"
)
CURRENCY_SIGNS = "$€£¥₹₽₩₫฿₱₦₺৳₪₴"
COUNTRIES = frozenset({"US", "S", "A", "C", "NT", "HK", "R", "AU", "CA"})
"""What may stand before a dollar sign."""


def _synonyms(table: str) -> Mapping[str, str]:
    """Each word of a line, to the line's first."""
    lines = [line.split() for line in table.strip().splitlines()]
    return MappingProxyType({word: line[0] for line in lines for word in line})


_CURRENCIES = _synonyms("""
    dollar dollars usd sgd aud cad $
    cent cents ¢
    euro euros eur €
    pound pounds gbp £
    yen jpy ¥
    yuan rmb cny
    rupiah rp idr
    ringgit rm myr
    baht thb ฿
    dong vnd ₫
    peso pesos php ₱
    rupee rupees inr rs ₹
    won krw ₩
    taka bdt ৳
    kyat mmk
    ruble rubles ₽
    shekel shekels ₪
    lira liras ₺
    naira ₦
    hryvnia ₴
""")
_ABBREVIATIONS = _synonyms("""
    km kilometer kilometers kilometre kilometres
    m meter meters metre metres
    dm decimeter decimeters decimetre decimetres
    cm centimeter centimeters centimetre centimetres
    mm millimeter millimeters millimetre millimetres
    nm
    kg kilogram kilograms kilo kilos
    g gram grams
    mg milligram milligrams
    lb lbs
    oz ounce ounces
    l liter liters litre litres
    cl
    ml milliliter milliliters millilitre millilitres
    h hr hrs hour hours
    min mins minute minutes
    s sec secs second seconds
    ms millisecond milliseconds
    yr yrs year years
    wk wks week weeks
    mi mile miles
    yd yds yard yards
    ft feet foot
    in inch inches
    sq square
    cu cubic
    ha hectare hectares
    mph
    kph kmh
    rpm
    hz
    khz
    mhz
    w watt watts
    kw
    mw
    kwh
    j joule joules
    kj
    n newton newtons
    kn
    pa
    kpa
    mpa
    v volt volts
    a amp amps ampere amperes
    k kelvin
    c celsius
    f fahrenheit
    mol mols mole moles
    ev
    db
    kb
    mb
    gb
    tb
    degree degrees deg
    rad radian radians
    pt pts point points
    pc pcs piece pieces
""")
_CLEAR_ABBREVIATIONS = frozenset(
    word for word in _ABBREVIATIONS if len(word) > 1 and word not in ("in", "pa", "a", "mi")
) | {"in"}
"""Without markup, a single letter or `pa` is rather a variable than a unit."""

_MONTHS = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
NOT_UNITS = listed(
    "plus minus times over divided multiplied product sum difference quotient factorial "
    "squared cubed "
    "root roots power exponent log ln sin cos tan cot sec csc exp sqrt lim mod modulo negative "
    "positive infinity infinite not no non none never neither nor or and xor but if then than "
    "more less fewer least most at between from to through until up down approximately about "
    "around nearly almost half halves third thirds quarter quarters fourth fourths "
    "fifth fifths "
    "sixth sixths seventh sevenths eighth eighths ninth ninths twice thrice double triple "
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty "
    "fifty sixty seventy eighty ninety only if where when is are was equals equal greater "
    "am pm a.m p.m o'clock oclock bc ad wrong incorrect "
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma tau upsilon phi chi psi omega st nd rd th i ii iii iv vi vii viii ix xi xii "
    "ครึ่ง 半 분의 rưỡi setengah " + _MONTHS
)
_ENGLISH_PLURALS = (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"))
_VOWELS = frozenset("aeiou")
_SHORT_WORDS = listed(
    "no on in up ok na so or if it at to by we us is of as an be do go he me my am"
)
_IDLE = listed("of the a an per left remaining in each total altogether all")


def leading_magnitude(word: str) -> tuple[Fraction, str]:
    """Magnitude and rest of a word: `million` is 10**6 and nothing, ล้านบาท is 10**6 and บาท in a
    script without spaces."""
    if word.casefold() in MAGNITUDES:
        return MAGNITUDES[word.casefold()], ""
    if word.isascii() or not _is_unspaced(word):
        return Fraction(1), word
    for length in range(len(word) - 1, 0, -1):
        if word[:length] in MAGNITUDES:
            factor, rest = leading_magnitude(word[length:])
            return MAGNITUDES[word[:length]] * factor, rest
    return Fraction(1), word


def is_abbreviation(word: str) -> bool:
    """Whether a word names a unit of measurement, `s` for a second too."""
    return word.casefold() in _ABBREVIATIONS


def is_currency(word: str) -> bool:
    """Whether a word or sign names money."""
    return word.casefold() in _CURRENCIES


def may_be_unit(word: str, *, marked: bool) -> bool:
    """Whether a word after a number only says what is counted.

    `marked`: it was written as text (`\\text{m}`), so that it cannot be a product of variables.
    """
    word = word.casefold()
    if word in NOT_UNITS or word in MAGNITUDES or word in PERCENT:
        return False
    if word in _CLEAR_ABBREVIATIONS or is_currency(word) or (marked and word in _ABBREVIATIONS):
        return True
    if not word.isascii():
        return _is_sound_unit(word)
    return marked or is_plain_word(word)


def _is_sound_unit(word: str) -> bool:
    return not any(other in word for other in ("ครึ่ง", "半", "분의"))


def is_plain_word(word: str) -> bool:
    """Whether a bare run of letters is a word and not a product of variables, such as `xyz`."""
    if word.casefold() in _SHORT_WORDS:
        return True
    return not word.isascii() or (len(word) >= 3 and not _VOWELS.isdisjoint(word.casefold()))


def same_unit(one: str, other: str) -> bool:
    """Whether two units do not contradict each other; an empty one goes with any."""
    first, second = _unit_words(one), _unit_words(other)
    return first <= second or second <= first


def _unit_words(unit: str) -> frozenset[str]:
    return frozenset(_canonical(word) for word in unit.split() if word not in _IDLE)


def _canonical(word: str) -> str:
    if word in _CURRENCIES:
        return _CURRENCIES[word]
    if word in _ABBREVIATIONS:
        return _ABBREVIATIONS[word]
    for plural, singular in _ENGLISH_PLURALS:
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


_UNSPACED_SCRIPTS = (
    "THAI", "CJK", "HANGUL", "HIRAGANA", "KATAKANA", "MYANMAR", "KHMER", "LAO", "BENGALI",
    "DEVANAGARI",
)  # fmt: skip


def _is_unspaced(word: str) -> bool:
    return unicodedata.name(word[0], "").startswith(_UNSPACED_SCRIPTS)
