"""For each instruction of IFEval: values of our own, and answers that follow them and do not."""

from __future__ import annotations

from typing import Any

# What a text in the language begins with; all are sentences of our own.
IN_LANGUAGE = {
    "en": "The weather was cold this morning, and nobody wanted to leave the house.",
    "es": "Esta mañana hacía mucho frío y nadie quería salir de la casa.",
    "pt": "Hoje de manhã estava muito frio e ninguém queria sair de casa, não é?",
    "ar": "كان الطقس باردا هذا الصباح ولم يرغب أحد في مغادرة المنزل.",
    "hi": "आज सुबह बहुत ठंड थी और कोई भी घर से बाहर नहीं जाना चाहता था।",
    "fr": "Il faisait très froid ce matin et personne ne voulait quitter la maison.",
    "ru": "Сегодня утром было холодно, и никто не хотел выходить из дома.",
    "de": "Heute Morgen war es sehr kalt, und niemand wollte das Haus verlassen.",
    "ja": "今朝はとても寒かったので、誰も家を出たくありませんでした。",
    "it": "Questa mattina faceva molto freddo e nessuno voleva uscire di casa.",
    "bn": "আজ সকালে খুব ঠান্ডা ছিল এবং কেউ ঘর থেকে বের হতে চায়নি।",
    "uk": "Сьогодні вранці було дуже холодно, і ніхто не хотів виходити з дому.",
    "th": "เช้านี้อากาศหนาวมากและไม่มีใครอยากออกจากบ้าน",
    "ur": "آج صبح بہت سردی تھی اور کوئی بھی گھر سے باہر نہیں نکلنا چاہتا تھا۔",
    "ta": "இன்று காலை மிகவும் குளிராக இருந்தது, யாரும் வீட்டை விட்டு வெளியேற விரும்பவில்லை.",
    "te": "ఈ ఉదయం చాలా చలిగా ఉంది, ఎవరూ ఇంటి నుండి బయటకు వెళ్లాలని అనుకోలేదు.",
    "bg": "Тази сутрин беше много студено и никой не искаше да излезе от къщата.",
    "ko": "오늘 아침은 매우 추워서 아무도 집을 나서고 싶어 하지 않았다.",
    "pl": "Dziś rano było bardzo zimno i nikt nie chciał wychodzić z domu.",
    "he": "הבוקר היה קר מאוד ואף אחד לא רצה לצאת מהבית.",
    "fa": "امروز صبح هوا بسیار سرد بود و هیچ‌کس نمی‌خواست از خانه بیرون برود.",
    "vi": "Sáng nay trời rất lạnh và không ai muốn ra khỏi nhà.",
    "ne": "आज बिहान धेरै जाडो थियो र कोही पनि घरबाट बाहिर निस्कन चाहँदैनथ्यो।",
    "sw": "Asubuhi ya leo kulikuwa na baridi sana na hakuna mtu aliyetaka kutoka nyumbani.",
    "kn": "ಇಂದು ಬೆಳಿಗ್ಗೆ ತುಂಬಾ ಚಳಿ ಇತ್ತು ಮತ್ತು ಯಾರೂ ಮನೆಯಿಂದ ಹೊರಗೆ ಹೋಗಲು ಬಯಸಲಿಲ್ಲ.",
    "mr": "आज सकाळी खूप थंडी होती आणि कोणालाही घराबाहेर जायचे नव्हते.",
    "gu": "આજે સવારે ખૂબ ઠંડી હતી અને કોઈ ઘરની બહાર જવા માંગતું ન હતું.",
    "pa": "ਅੱਜ ਸਵੇਰੇ ਬਹੁਤ ਠੰਢ ਸੀ ਅਤੇ ਕੋਈ ਵੀ ਘਰੋਂ ਬਾਹਰ ਨਹੀਂ ਜਾਣਾ ਚਾਹੁੰਦਾ ਸੀ।",
    "ml": "ഇന്ന് രാവിലെ നല്ല തണുപ്പായിരുന്നു, ആരും വീട്ടിൽ നിന്ന് പുറത്തിറങ്ങാൻ ആഗ്രഹിച്ചില്ല.",
    "fi": "Tänä aamuna oli hyvin kylmä, eikä kukaan halunnut lähteä kotoa.",
}

VALUES: dict[str, dict[str, Any]] = {
    "change_case:capital_word_frequency": {"capital_frequency": 3, "capital_relation": "at least"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Which bird sings at night?"},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": 2},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": ["lantern", "harbour"]},
    "keywords:forbidden_words": {"forbidden_words": ["storm", "wreck"]},
    "keywords:frequency": {"keyword": "otter", "frequency": 2, "relation": "less than"},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
    "language:response_language": {"language": "de"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "still"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "less than"},
    "length_constraints:number_words": {"num_words": 5, "relation": "at least"},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": "That is all I know."},
    "startend:quotation": {},
}
PROSE = "The keeper lit a lamp. Nobody came."


def right_answer(kind: str, values: dict[str, Any]) -> str:
    """Return an answer that follows one instruction, whatever its values are."""
    return _answer(kind, values, 0)


def wrong_answer(kind: str, values: dict[str, Any]) -> str:
    """Return an answer, not blank, that does not follow one instruction, strictly nor loosely."""
    return _answer(kind, values, 1)


def _answer(kind: str, values: dict[str, Any], which: int) -> str:
    maker = _COUNTED.get(kind)
    return maker(values)[which] if maker else _FIXED[kind][which]


def _relation(values: dict[str, Any], name: str, relation: str, unit: str) -> tuple[str, str]:
    """Return `unit` as often as asked for and otherwise; each answer has a word of its own in front."""
    enough, few = "Well " + unit * values[name], "Well " + unit * (values[name] - 1)
    return (enough, few) if values[relation] == "at least" else (few, enough)


def _paragraphs(values: dict[str, Any]) -> tuple[str, str]:
    words = [f"{values['first_word']} here." if n == values["nth_paragraph"] else "Other words."
             for n in range(1, values["num_paragraphs"] + 1)]  # fmt: skip
    return "\n\n".join(words), "\n\n".join(["Not so."] * (values["num_paragraphs"] + 3))


def _number(values: dict[str, Any], name: str, unit: str, between: str = "") -> tuple[str, str]:
    """Return `unit` as often as asked for, and four times more; a wrong answer without any where that is enough."""
    return between.join([unit] * values[name]), between.join([unit] * (values[name] + 4))


def _letters(values: dict[str, Any]) -> tuple[str, str]:
    enough, few = values["letter"] * values["let_frequency"] + " 1", values["letter"] * (values["let_frequency"] - 1)
    return (enough, few + " 1") if values["let_relation"] == "at least" else (few + " 1", enough)


_FIXED = {
    "change_case:english_capital": (IN_LANGUAGE["en"].upper(), IN_LANGUAGE["en"]),
    "change_case:english_lowercase": (IN_LANGUAGE["en"].lower(), IN_LANGUAGE["en"]),
    "combination:two_responses": ("One way.******Another way.", "One way.******One way."),
    "detectable_format:constrained_response": ("My answer is maybe.", "I could not say."),
    "detectable_format:json_format": ('```json\n{"bird": ["owl"]}\n```', '{"bird": owl'),
    "detectable_format:title": ("<<The Keeper>>\n\n" + PROSE, "The Keeper\n\n" + PROSE),
    "punctuation:no_comma": (PROSE, "Night, wind and rain, all at once"),
    "startend:quotation": (f'"{PROSE}"', PROSE),
}
_COUNTED = {
    "change_case:capital_word_frequency": lambda v: _relation(v, "capital_frequency", "capital_relation", "OWL "),
    "combination:repeat_prompt": lambda v: (f"{v['prompt_to_repeat']}\n\n{PROSE}", PROSE),
    "detectable_content:number_placeholders": lambda v: (_number(v, "num_placeholders", "[name] ")[0], PROSE),
    "detectable_content:postscript": lambda v: (f"{PROSE}\n\n{v['postscript_marker']} Bring bread.", PROSE),
    "detectable_format:multiple_sections": lambda v: (
        "\n".join(f"{v['section_spliter']} {n}\n{PROSE}" for n in range(1, v["num_sections"] + 1)), PROSE,
    ),
    "detectable_format:number_bullet_lists": lambda v: _number(v, "num_bullets", "- an owl", "\n"),
    "detectable_format:number_highlighted_sections": lambda v: (_number(v, "num_highlights", "*owl* ")[0], PROSE),
    "keywords:existence": lambda v: (" ".join(v["keywords"]), "Nothing of it 1"),
    "keywords:forbidden_words": lambda v: ("1 2 3", f"1 {v['forbidden_words'][-1]} 2"),
    "keywords:frequency": lambda v: _relation(v, "frequency", "relation", f" {v['keyword']}"),
    "keywords:letter_frequency": _letters,
    "language:response_language": lambda v: (
        IN_LANGUAGE[v["language"]], IN_LANGUAGE["en" if v["language"] != "en" else "de"],
    ),
    "length_constraints:nth_paragraph_first_word": _paragraphs,
    "length_constraints:number_paragraphs": lambda v: _number(v, "num_paragraphs", PROSE, "\n***\n"),
    "length_constraints:number_sentences": lambda v: _sentences(v),
    "length_constraints:number_words": lambda v: _words(v),
    "startend:end_checker": lambda v: (f"{PROSE} {v['end_phrase']}", PROSE),
}  # fmt: skip


def _sentences(values: dict[str, Any]) -> tuple[str, str]:
    enough = "The owl sat there. " * values["num_sentences"]
    few = "The owl sat there. " * (values["num_sentences"] - 1) or "1"
    return (enough, few) if values["relation"] == "at least" else (few, enough)


def _words(values: dict[str, Any]) -> tuple[str, str]:
    enough, few = "owl " * values["num_words"], "owl " * (values["num_words"] - 1)
    return (enough, few) if values["relation"] == "at least" else (few, enough)
