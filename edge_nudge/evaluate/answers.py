"""What an answer says: the number, letter, word or date that a written answer comes down to.

Owns finding it in free text and comparing it with the right one. Never sees a model and never guesses: where an
answer names nothing of its kind, or several things at once, nothing is found. Time is linear in the length of the text.

1. What stands behind the last mark ("the answer is", \\boxed{, ####) counts most: the questions ask for that form.
   A mark without anything of the kind behind it is passed over.
2. "Answer:" may also head a whole solution, so it is a mark only where the thing itself follows at once.
3. Without a mark the conclusion counts: the last sentence that has one; for a yes or no the first word too.
4. What is only repeated answers nothing: the question's words ("yes or no"), a list of all choices, numbers of steps.
5. A reckoning that breaks off in the middle comes to no number.
6. A wrong form of the right thing is right: "$1,200.00" is 1200, "(b)" is B, "May 1, 2021" is 05/01/2021.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from enum import Enum

from edge_nudge.evaluate.numbers import concluded_number, number_at, value_of
from edge_nudge.evaluate.parts import Found, parts_of, sentences_of


class Kind(str, Enum):
    """What kind of thing answers a question."""

    NUMBER = "number"
    CHOICE = "choice"
    YES_NO = "yes_no"
    PLAUSIBLE = "plausible"
    DATE = "date"
    LETTERS = "letters"
    TEXT = "text"  # any words: the right answer is one that has them


# Every repetition below is bounded or cannot be split in two ways: a text without an answer costs no more than others.
_LATEX = (
    (re.compile(r"\\[dt]?frac\s?\{(\d{1,20})\}\s?\{(\d{1,20})\}", re.ASCII), r"\1/\2"),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it)|mbox)\s?\{"), ""),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", re.ASCII), ","),
    (re.compile(r"(?<![^\W_])_{1,9}|_{1,9}(?![^\W_])"), ""),
)
_STRAIGHT = str.maketrans({"\u2212": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "\r": "\n", "\u2028": "\n"})
_ECHOES = re.compile(
    r"\"the answer is\" and\b[^\n]*|\byes(?: or |/)no\b|\bno or yes\b|\btrue(?: or |/)false\b"
    r"|\bplausible(?: or |/| and | nor )(?:not\b|implausible)|\bimplausible(?: or |/| and | nor )plausible"
    r"|\bwhether\b[^\n.,;:]*",
    re.IGNORECASE,
)
_MARK = re.compile(
    r"(?P<boxed>\\(?:boxed|fbox)\s?\{)"
    r"|(?P<hashes>^\#{4}[ \t]?(?=[-$]{0,2}\d[\d,.]{0,40}$))"
    r"|(?P<weak>\banswer\b[*\"]{0,3}\s?:[\s:*]*|^[#*\s]{0,9}(?:final\s)?answer[*:]{0,3}$)"
    r"|(?:\banswer\b|\b(?:correct|right|best)\s(?:choice|option|letter|number|date|statement|word)\b)[*\"]{0,3}"
    r"(?:\s(?:to|of|for|in)(?:\s[^\W_]{1,20}){1,8}?)?(?:\s(?:should|would|must|will|can))?(?:\s(?:therefore|thus|then))?"
    r"(?:\s(?:is|be)\b|\s?=)(?!\s{1,3}(?:not|no longer|wrong|incorrect)\b)[\s:*]*",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = re.compile(
    r"(?:(?:the|most likely|option|choice|letter|clearly|definitely|probably|therefore)[\s:*(\"]{1,4}){1,3}",
    re.IGNORECASE,
)
_NOUN = re.compile(r"\s(?!(?:and|or|is|as|because|since)\b)\w")
_NOT_PLAUSIBLE_MARK = re.compile(r"\banswer\b[*\"]{0,3}\s(?:is|:)\s{1,3}(?=not\b)", re.IGNORECASE)
_DECORATION = "*_`\"'$\\({[<#~ \t\n>:"
# "no" before a noun ("no evidence") is no answer
_YES_NO = re.compile(
    r"\b(?:(yes)|(no)(?![-'])"
    r"(?![ \t](?!(?:it|the|he|she|they|this|that|because|since|there|i|we|you|but|as|answer)\b)\w))\b",
    re.IGNORECASE,
)
_TRUE_FALSE = re.compile(r"\b(?:(true)|(false))\b", re.IGNORECASE)
_NOT_TRUE = re.compile(r"\b(?:not\s|isn't\s)true\b", re.IGNORECASE)
_VERDICT = re.compile(r"\W*(?:(?:so|therefore|thus|hence|then|finally|and)\W{1,3})?(?:(yes)|(no))\W*", re.IGNORECASE)
_PLAUSIBLE = re.compile(
    r"\b(?:(?:not\b|cannot\b|\w{2,6}n't\b|can't\b)(?:\s[^\W_]{1,20}){0,2}?\s(?:plausible|(implausible))|(implausible|unplausible)|(plausible))\b",
    re.IGNORECASE,
)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS) + "|sept"
_DATE = re.compile(
    r"(?<![\d/])(?P<m>\d{1,2})\s?/\s?(?P<d>\d{1,2})\s?/\s?(?P<y>\d{4})(?!\d)"
    r"|(?<![\d-])(?P<m1>\d{1,2})-(?P<d1>\d{1,2})-(?P<y1>\d{4})(?!\d)"
    r"|(?<!\d)(?P<y2>\d{4})[-/](?P<m2>\d{1,2})[-/](?P<d2>\d{1,2})(?!\d)"
    rf"|\b(?P<m3>{_MONTH})\b\.?\s(?:the\s)?(?P<d3>\d{{1,2}})(?:st|nd|rd|th)?(?:,|\sof)?\s?(?<!\d)(?P<y3>\d{{4}})\b"
    rf"|(?<!\d)(?P<d4>\d{{1,2}})(?:st|nd|rd|th)?\s(?:day\s)?(?:of\s)?(?P<m4>{_MONTH})\b\.?,?\s(?P<y4>\d{{4}})\b",
    re.ASCII | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_APART = re.compile(r"(?<![^\W_])[^\W\d_](?:[\s,+.\"'*-]{1,5}[^\W\d_](?![^\W_])){1,40}")
_QUOTED = re.compile(r"[\"'*`]([^\W\d_]{2,60})[.]?[\"'*`]")
_NAMING = re.compile(
    r"(?:\b(?:is|are|get|gives?|form|forms|becomes|makes|spells|word|string|result)|[=→:])[:\s]{0,3}[\"'*`]{1,3}"
    r"([^\W\d_]{2,60})[\"'*`.]|[=→:]\s?[*]{0,2}([^\W\d_]{2,60})[\s.*]*$",
    re.IGNORECASE | re.MULTILINE,
)
_NO_MORE_WORDS = re.compile(
    r"[*\"')]{0,4}(?:\W{0,40}$|[.;:]|,?\s\(|,?\s(?:because|since|as|which|when|from|by|after)\b)", re.I
)
_FILLERS = frozenset(
    (
        *("the", "a", "an", "of", "as", "is", "one", "word", "words", "letter", "letters", "string", "concatenation"),
        *("concatenated", "concatenating", "last", "final", "following", "result", "resulting", "each", "all", "these"),
        *("that", "are", "and", "together", "would", "be", "to", "in", "so", "from"),
    )
)


def find_answer(kind: Kind, text: str, choices: Sequence[str] = ()) -> str | None:
    """Return what `text` answers, in the form of the right answers of its kind; None where it names nothing."""
    if kind is Kind.TEXT:  # it may stand anywhere
        return text.strip() or None
    text = _plain(text)
    at, conclude = _FINDERS[kind]
    for part, is_weak in _marked(kind, text):
        found = at(part, choices)
        if found is not None and (not is_weak or _is_all(kind, part, found[0])):
            return found[1]
    return conclude(text, choices)


def _is_all(kind: Kind, line: str, start: int) -> bool:
    """Tell whether a line behind "Answer:" is the answer, and not the beginning of a solution."""
    if re.search(r"\w", line[:start]):
        return False
    n_words = len(parts_of(line)[0][1].split())
    return {
        Kind.NUMBER: n_words <= 5 and "=" not in line,
        Kind.LETTERS: n_words == 1 or not line[start:].startswith(tuple(_WORD.findall(line)[:1])),
    }.get(kind, True)


def is_right(kind: Kind, found: str | None, gold: str) -> bool:
    """Tell whether what was found is the right answer."""
    if found is None:
        return False
    if kind is Kind.NUMBER:
        value = value_of(found)
        return value is not None and value == value_of(gold)
    if kind is Kind.TEXT:
        return _has(_folded(found), _folded(gold).rstrip(".,"))
    return found.casefold() == _gold(kind, gold).casefold()


def kind_of_gold(gold: str) -> Kind:
    """Return what kind of thing a right answer is: a number, or words."""
    return Kind.TEXT if value_of(gold.strip()) is None else Kind.NUMBER


def is_answer(kind: Kind, gold: str) -> bool:
    """Tell whether a right answer has the form that answers are found in: no other can ever be given."""
    if kind is Kind.NUMBER:
        return value_of(gold) is not None
    if kind is Kind.TEXT:
        return _folded(gold).strip(".,") != ""
    if kind is Kind.LETTERS:
        return _WORD.fullmatch(gold) is not None
    if kind is Kind.DATE:
        return re.fullmatch(r"\d\d/\d\d/\d{4}", gold, re.ASCII) is not None and _first_date(gold) is not None
    words = {Kind.YES_NO: ("yes", "no"), Kind.PLAUSIBLE: ("plausible", "implausible")}
    return _gold(kind, gold).casefold() in words[kind] if kind in words else len(gold) == 1


def _gold(kind: Kind, gold: str) -> str:
    """Return a right answer in the form that `find_answer` gives: some sets say true for yes."""
    return {"true": "yes", "false": "no"}.get(gold.casefold(), gold) if kind is Kind.YES_NO else gold


def _plain(text: str) -> str:
    """Return the text without typesetting and without what only repeats the question."""
    text = text.translate(_STRAIGHT)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return _ECHOES.sub(" ", re.sub(r"[ \t]{2,}", " ", text))


def _marked(kind: Kind, text: str) -> Iterator[tuple[str, bool]]:
    """Yield what stands behind each mark on its line, the last mark first, and whether the mark is weak."""
    marks = list(_MARK.finditer(text))
    if kind is Kind.PLAUSIBLE:
        marks = sorted([*marks, *_NOT_PLAUSIBLE_MARK.finditer(text)], key=lambda mark: mark.start())
    end = len(text)
    for mark in reversed(marks):
        groups = mark.groupdict()
        part = text[mark.end() : max(end, mark.end())]
        end = mark.start()
        if groups.get("hashes") is not None and kind is not Kind.NUMBER:
            continue
        line, _, rest = part.partition("\n")
        if not line.strip(_DECORATION.replace('"', "")):
            line = next((other for other in rest.split("\n") if re.search(r"\w", other)), "")
        if groups.get("boxed"):
            line = line.split("}", 1)[0]
        yield line, groups.get("weak") is not None


def _span(choices: Sequence[str]) -> str:
    return "".join(chr(ord("A") + i) for i in range(min(len(choices), 26)))


def _choice_at(line: str, choices: Sequence[str]) -> Found:
    span = _span(choices)
    if not span:
        return None
    either = span + span.lower()
    for _, part in parts_of(line):
        start = len(part) - len(part.lstrip(_DECORATION))
        if (leads := _LEAD.match(part, start)) is not None:
            start = leads.end()
        both = rf"(?:\s?[,/&]\s?|\s(?:or|and)\s)[(*]{{0,3}}[{span}]\b(?!')"
        match = re.compile(rf"([{either}])(?![\w'])(?!-\w)").match(part, start)
        if match is not None:
            if re.compile(rf"[)*]{{0,3}}{both}").match(part, match.end()):
                return None
            has_word = re.compile(r"\s\w").match(part, match.end()) is not None
            named = _named(part[match.start() :], choices) if has_word else None
            is_article = match.group(1) in "aAI" and has_word and named not in (None, match.group(1).upper())
            if not is_article and (match.group(1).isupper() or not has_word):  # "a bank" is no letter
                return match.start(), match.group(1).upper()
        mentioned = {m.group(1).upper(): m.start() for m in re.finditer(rf"\(([{either}])\)", part)}
        if len(mentioned) > 1:
            return None
        if mentioned:
            letter, place = next(iter(mentioned.items()))
            return place, letter
        if (name := _named(part, choices)) is not None:
            return start, name
        alone = {
            m.group(1): m.start()
            for m in re.finditer(rf"(?<![\w'-])([{span}])(?![\w'-])", part)
            if m.group(1) not in "AI" or not _NOUN.match(part, m.end())
        }
        if len(alone) == 1:
            letter, place = next(iter(alone.items()))
            return place, letter
    return None


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """Take the one letter of the last sentence, else the one of the whole text, else the one choice that is named."""
    span = _span(choices)
    if not span:
        return None
    either = span + span.lower()
    lines = re.compile(rf"^[^\w\n]{{0,6}}(?:option\s|choice\s)?([{span}])[*]{{0,2}}[.):](?=[\s*]|$)[^\n]*", re.M | re.I)
    heads = [m.group(1).upper() for m in lines.finditer(text)]
    first = next((line for line in text.split("\n") if re.search(r"\w", line)), "")
    if (bare := re.fullmatch(rf"\W*([{either}])\W*", first)) is not None:
        return bare.group(1).upper()
    is_list = len(set(heads)) > 1  # of the choices, or a look at each
    if is_list:
        text = lines.sub("\n", text)
    mention = re.compile(
        rf"\(([{either}])\)"
        rf"|\b(?i:option|choice|letter|answer)\s[(*\"]{{0,3}}(?:([{span}])|([{span.lower()}])(?!\s\w))(?![\w'])"
        rf"|(?<![\w'-])([{span}])\b[)*\"]{{0,3}}\sis\s(?:the\s)?(?:correct|right|best)\b"
        + ("" if is_list else rf"|^[^\w\n]{{0,6}}([{span}])[*]{{0,2}}[.):](?=[\s*]|$)"),
        re.MULTILINE,
    )
    sentences = sentences_of(text)
    for part in (sentences[-1] if sentences else "", text):
        found: set[str] = {next(filter(None, m.groups())).upper() for m in mention.finditer(part)}
        if len(found) == 1:
            return found.pop()
    if found:
        return None
    name = _named(text, choices)
    if name is None or re.search(r"[A-Za-z]", choices[ord(name) - ord("A")]):
        return name
    return _named(sentences[-1], choices)  # a number may stand anywhere in a reckoning


def _named(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the one choice whose words stand in the text."""
    folded = _folded(text)
    words = [_folded(choice).rstrip(".,") for choice in choices[:26]]
    named = [(len(own), i) for i, own in enumerate(words) if _has(folded, own)]
    if not named:
        return None
    longest = words[max(named)[1]]
    if any(words[i] not in longest or (words[i] == longest and i != max(named)[1]) for _, i in named):
        return None
    return chr(ord("A") + max(named)[1])


def _has(folded: str, words: str) -> bool:
    """Tell whether words stand in a text, and not as part of other words or numbers; both are folded."""
    return bool(words) and re.search(rf"(?<![\w.,-]){re.escape(words)}(?!\w|[.,]\d)", folded) is not None


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[\w.%$/,-]+", text.casefold()))


def _yes_no_at(line: str, choices: Sequence[str]) -> Found:
    for _, part in parts_of(line):
        for pattern in (_YES_NO, _TRUE_FALSE):
            if (match := pattern.search(_NOT_TRUE.sub("false", part))) is not None:
                return match.start(), "yes" if match.group(1) else "no"
    return None


def _yes_no(text: str, choices: Sequence[str]) -> str | None:
    sentences = sentences_of(text)
    if sentences and (verdict := _VERDICT.fullmatch(sentences[-1])) is not None:
        return "yes" if verdict.group(1) else "no"
    for pattern in (_YES_NO, _TRUE_FALSE):
        found = list(pattern.finditer(_NOT_TRUE.sub("false", text)))
        if found:
            is_opening = not re.search(r"\w", text[: found[0].start()])
            return "yes" if found[0 if is_opening else -1].group(1) else "no"
    return None


def _plausible_at(line: str, choices: Sequence[str]) -> Found:
    match = _PLAUSIBLE.search(line)
    return None if match is None else (match.start(), _verdict(match))


def _plausible(text: str, choices: Sequence[str]) -> str | None:
    found = list(_PLAUSIBLE.finditer(text))
    return _verdict(found[-1]) if found else None


def _verdict(match: re.Match[str]) -> str:
    not_implausible, _, plausible = match.groups()
    return "plausible" if not_implausible or plausible else "implausible"


def _dates(text: str) -> Iterator[tuple[int, str]]:
    for match in _DATE.finditer(text):
        parts = {name[0]: value for name, value in match.groupdict().items() if value is not None}
        month = parts["m"]
        if not month.isdecimal():
            month = str(next(i for i, name in enumerate(_MONTHS, 1) if name.startswith(month.casefold()[:3])))
        try:
            day = date(int(parts["y"]), int(month), int(parts["d"]))
        except ValueError:
            continue
        yield match.start(), f"{day.month:02}/{day.day:02}/{day.year:04}"


def _first_date(line: str, choices: Sequence[str] = ()) -> Found:
    return next(_dates(line), None)


def _last_date(text: str, choices: Sequence[str]) -> str | None:
    found = [day for _, day in _dates(text)]
    return found[-1] if found else None


def _letters_at(line: str, choices: Sequence[str]) -> Found:
    """Take the quoted word, letters set apart ("y a j o", "y-a-j-o") as one, or the first word that says something."""
    apart = _APART.search(line)
    if apart is not None:
        result = _NAMING.search(line, apart.end())
        if result is not None:
            return apart.start(), (result.group(1) or result.group(2)).casefold()
        return apart.start(), "".join(_WORD.findall(apart.group())).casefold()
    if (quoted := _QUOTED.search(line)) is not None:
        return quoted.start(), quoted.group(1).casefold()
    if (named := _NAMING.search(line)) is not None:
        return named.start(), (named.group(1) or named.group(2)).casefold()
    for word in _WORD.finditer(line):
        if word.group().casefold() not in _FILLERS:
            is_one = _NO_MORE_WORDS.match(line, word.end()) is not None  # names in a row are the question's
            return (word.start(), word.group().casefold()) if is_one else None
    return None


def _letters(text: str, choices: Sequence[str]) -> str | None:
    named = [match.group(1) or match.group(2) for match in _NAMING.finditer(text)]
    if named:
        return named[-1].casefold()
    words = _WORD.findall(text)
    if len(words) == 1:
        return str(words[0]).casefold()
    apart = _APART.fullmatch(text.strip(_DECORATION + "."))
    return "".join(_WORD.findall(apart.group())).casefold() if apart else None


_FINDERS: dict[Kind, tuple[Callable[[str, Sequence[str]], Found], Callable[[str, Sequence[str]], str | None]]] = {
    Kind.NUMBER: (number_at, concluded_number),
    Kind.CHOICE: (_choice_at, _choice),
    Kind.YES_NO: (_yes_no_at, _yes_no),
    Kind.PLAUSIBLE: (_plausible_at, _plausible),
    Kind.DATE: (_first_date, _last_date),
    Kind.LETTERS: (_letters_at, _letters),
}
