"""Answers that follow a constraint, whatever its arguments are, and answers that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compass.gym.instructions.arguments import RELATIONS

LANGUAGE_SAMPLES = {
    "ar": "أحب أن أقرأ الكتب في المساء لأنها تساعدني على النوم بشكل أفضل.",
    "bg": "Обичам да чета книги вечер, защото ми помагат да заспя по-добре.",
    "bn": "আমি সন্ধ্যায় বই পড়তে ভালোবাসি কারণ এটি আমাকে ভালো ঘুমাতে সাহায্য করে।",
    "de": "Ich lese abends gerne Bücher, weil ich danach besser schlafen kann.",
    "en": "I like to read books in the evening because they help me to sleep better.",
    "fa": "من دوست دارم عصرها کتاب بخوانم زیرا به من کمک می‌کند بهتر بخوابم.",
    "fi": "Luen mielelläni kirjoja iltaisin, koska ne auttavat minua nukkumaan paremmin.",
    "gu": "મને સાંજે પુસ્તકો વાંચવા ગમે છે કારણ કે તે મને સારી ઊંઘ લેવામાં મદદ કરે છે.",
    "hi": "मुझे शाम को किताबें पढ़ना पसंद है क्योंकि इससे मुझे अच्छी नींद आती है।",
    "it": "Mi piace leggere libri la sera perché mi aiutano a dormire meglio.",
    "kn": "ನನಗೆ ಸಂಜೆ ಪುಸ್ತಕಗಳನ್ನು ಓದಲು ಇಷ್ಟ ಏಕೆಂದರೆ ಅದು ಚೆನ್ನಾಗಿ ನಿದ್ರೆ ಮಾಡಲು ಸಹಾಯ ಮಾಡುತ್ತದೆ.",
    "ko": "나는 저녁에 책을 읽는 것을 좋아한다. 잠을 더 잘 자는 데 도움이 되기 때문이다.",
    "lo": "ຂ້ອຍມັກອ່ານປຶ້ມໃນຕອນແລງ",
    "mr": "मला संध्याकाळी पुस्तके वाचायला आवडतात कारण त्यामुळे मला चांगली झोप लागते आणि बरे वाटते.",
    "my": "ကျွန်တော် ညနေပိုင်းတွင် စာအုပ်ဖတ်ရတာ ကြိုက်ပါတယ်။",
    "ne": "मलाई साँझमा किताबहरू पढ्न मन पर्छ किनभने यसले मलाई राम्रोसँग सुत्न मद्दत गर्छ।",
    "pa": "ਮੈਨੂੰ ਸ਼ਾਮ ਨੂੰ ਕਿਤਾਬਾਂ ਪੜ੍ਹਨਾ ਪਸੰਦ ਹੈ ਕਿਉਂਕਿ ਇਹ ਮੈਨੂੰ ਚੰਗੀ ਨੀਂਦ ਲੈਣ ਵਿੱਚ ਮਦਦ ਕਰਦਾ ਹੈ।",
    "pt": "Gosto de ler livros à noite porque eles me ajudam a dormir melhor.",
    "ru": "Я люблю читать книги вечером, потому что они помогают мне лучше спать.",
    "sw": "Ninapenda kusoma vitabu jioni kwa sababu vinanisaidia kulala vizuri zaidi usiku.",
    "ta": "எனக்கு மாலையில் புத்தகங்கள் படிக்க பிடிக்கும், ஏனெனில் அவை நன்றாக தூங்க உதவுகின்றன.",
    "te": "నాకు సాయంత్రం పుస్తకాలు చదవడం ఇష్టం ఎందుకంటే అవి నాకు బాగా నిద్రపోవడానికి సహాయపడతాయి.",
    "th": "ฉันชอบอ่านหนังสือในตอนเย็นเพราะช่วยให้ฉันนอนหลับได้ดีขึ้น",
    "ur": "مجھے شام کو کتابیں پڑھنا پسند ہے کیونکہ اس سے مجھے بہتر نیند آتی ہے۔",
    "vi": "Tôi thích đọc sách vào buổi tối vì nó giúp tôi ngủ ngon hơn.",
    "zh": "我喜欢在晚上看书，因为这能帮助我睡得更好。",
}


def counted(unit: Callable[[int], str], limit: int, relation: str, holds: bool) -> str:
    """So many units that `relation` to `limit` holds, or does not."""
    numbers = (n for n in range(2 * int(limit) + 3) if RELATIONS[relation](n, limit) is holds)
    return unit(next(numbers))


def english(case: Callable[[str], str], holds: bool) -> str:
    text = LANGUAGE_SAMPLES["en"]
    return case(text if holds else LANGUAGE_SAMPLES["de"])


def paragraphs(a: Mapping[str, Any], holds: bool) -> str:
    number = a["num_paragraphs"]
    word = a["first_word"].upper() if holds else "otherwise"
    parts = ["Some text, here."] * number
    parts[a["nth_paragraph"] - 1] = f"{word}, and so on."
    return "\n\n".join(parts)


MADE: Mapping[str, Callable[[Mapping[str, Any], bool], str]] = {
    "keywords:existence": lambda a, holds: "So " + " and ".join(a["keywords"][not holds :]) + " :",
    "keywords:frequency": lambda a, holds: counted(
        lambda n: "So: " + f"{a['keyword']}; " * n, a["frequency"], a["relation"], holds
    ),
    "keywords:forbidden_words": lambda a, holds: (
        "So 'tis" + "" * holds if holds else f"So ({a['forbidden_words'][-1].upper()})"
    ),
    "keywords:letter_frequency": lambda a, holds: counted(
        lambda n: "0 " + a["letter"] * n, a["let_frequency"], a["let_relation"], holds
    ),
    "language:response_language": lambda a, holds: LANGUAGE_SAMPLES[
        a["language"] if holds else "en" if a["language"] != "en" else "de"
    ],
    "length_constraints:number_sentences": lambda a, holds: counted(
        lambda n: "Yes, Dr. No is 3.5. " * n or "...", a["num_sentences"], a["relation"], holds
    ),
    "length_constraints:number_paragraphs": lambda a, holds: "\n***\n".join(
        ["Some text."] * (a["num_paragraphs"] + (not holds))
    ),
    "length_constraints:number_words": lambda a, holds: counted(
        lambda n: "word, " * n or "-", a["num_words"], a["relation"], holds
    ),
    "length_constraints:nth_paragraph_first_word": paragraphs,
    "detectable_content:number_placeholders": lambda a, holds: (
        "To [name] " * (a["num_placeholders"] - (not holds)) + "[open"
    ),
    "detectable_content:postscript": lambda a, holds: (
        "Well.\n" + (a["postscript_marker"] if holds else "PS") + " more"
    ),
    "detectable_format:number_bullet_lists": lambda a, holds: (
        "So:\n" + "* one\n**bold**\n" * (a["num_bullets"] + (not holds))
    ),
    "detectable_format:constrained_response": lambda a, holds: (
        "My answer is maybe." if holds else "My answer is perhaps."
    ),
    "detectable_format:number_highlighted_sections": lambda a, holds: (
        "*one* and\n" * (a["num_highlights"] - (not holds)) + "** **"
    ),
    "detectable_format:multiple_sections": lambda a, holds: (
        "".join(
            f"{a['section_spliter']} {i}\ntext\n" for i in range(a["num_sections"] - (not holds))
        )
        + "end"
    ),
    "detectable_format:json_format": lambda a, holds: (
        '```json\n{"a": [1, null]}\n```' if holds else '{"a": NaN}'
    ),
    "detectable_format:title": lambda a, holds: "<<A title>>\ntext" if holds else "<< >>\n<<text",
    "combination:two_responses": lambda a, holds: "one\n******\n" + ("two" if holds else "one "),
    "combination:repeat_prompt": lambda a, holds: (
        ("" if holds else "Well: ") + a["prompt_to_repeat"] + "\nSo."
    ),
    "startend:end_checker": lambda a, holds: f"So. {a['end_phrase']}" + " And more." * (not holds),
    "startend:quotation": lambda a, holds: '"So it is.' + '"' * holds,
    "change_case:capital_word_frequency": lambda a, holds: counted(
        lambda n: "so, " + "WELL-KNOWN, " * n, a["capital_frequency"], a["capital_relation"], holds
    ),
    "change_case:english_capital": lambda a, holds: english(str.upper, holds),
    "change_case:english_lowercase": lambda a, holds: english(str.lower, holds),
    "punctuation:no_comma": lambda a, holds: "So it is" + "," * (not holds),
}
"""By the kind of constraint: its arguments, and whether the answer is to follow it."""
