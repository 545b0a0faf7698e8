"""What an answer says: the number, letter, word or date that a written answer comes down to.

Owns finding it in free text and comparing it with the right one. Never sees a model and never guesses: where an
answer names nothing of its kind, nothing is found.

1. What stands behind the last "answer is" (or "answer:") counts most: the questions ask for that form.
2. Without it the last mention counts, for a yes or no the first word too: models say it first or last.
3. A question that is only repeated ("yes or no", "MM/DD/YYYY") answers nothing.
4. A wrong form of the right thing is right: "$1,200.00" is 1200, "(b)" is B, "May 1, 2021" is 05/01/2021.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from enum import Enum


class Kind(str, Enum):
    """What kind of thing answers a question."""

    NUMBER = "number"
    CHOICE = "choice"
    YES_NO = "yes_no"
    PLAUSIBLE = "plausible"
    DATE = "date"
    LETTERS = "letters"
    TEXT = "text"  # any words: the right answer is one that has them


_MARK = re.compile(r"\banswer\s*(?:is|:|=|would be|should be)[\s:]*", re.IGNORECASE)
_ECHOES = re.compile(
    r"(?:\byes or no|\btrue or false|\bplausible or (?:implausible|not)|\"The answer is\" and\b[^\n]*)", re.IGNORECASE
)
_DECORATION = "*_`\"'“”‘’$\\({[<# "
_NUMBER = re.compile(r"(?<![\w.,])-?\s?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])-?\$?\.\d+")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_TRUE_FALSE = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_PLAUSIBLE = re.compile(r"\b(implausible|not\s+plausible|plausible)\b", re.IGNORECASE)
_SLASHES = re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})/(\d{4})(?!\d)")
_ISO = re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_IN_WORDS = re.compile(rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")
_QUOTED = re.compile(r"[\"“'*]([A-Za-z]+)[\"”'*]")


def find_answer(kind: Kind, text: str, choices: Sequence[str] = ()) -> str | None:
    """Return what `text` answers, in the form of the right answers of its kind; None where it names nothing."""
    text = _ECHOES.sub(" ", text)
    marks = list(_MARK.finditer(text))
    find = _FINDERS[kind]
    if marks:
        line = text[marks[-1].end() :].lstrip().split("\n", 1)[0]
        if (found := find(line, choices, True)) is not None:
            return found
    return find(text, choices, False)


def is_right(kind: Kind, found: str | None, gold: str) -> bool:
    """Tell whether what was found is the right answer."""
    if found is None:
        return False
    if kind is Kind.NUMBER:
        return _decimal(found) == _decimal(gold)
    if kind is Kind.TEXT:
        return f" {_folded(gold)} " in f" {_folded(found)} "
    return found.casefold() == _gold(kind, gold).casefold()


def kind_of_gold(gold: str) -> Kind:
    """Return what kind of thing a right answer is: a number, or words."""
    return Kind.TEXT if _decimal(gold.strip()) is None else Kind.NUMBER


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[\w.%$/-]+", text.casefold())).rstrip(".")


def _gold(kind: Kind, gold: str) -> str:
    """Return a right answer in the form that `find_answer` gives: some sets say true for yes."""
    return {"true": "yes", "false": "no"}.get(gold.casefold(), gold) if kind is Kind.YES_NO else gold


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _number(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    """Behind the mark the first number ("18 dollars, 3 more than"), unless a sum ends in one ("5 + 3 = 8")."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    if is_marked:
        sentence = re.split(r"\.\s|\.$|;|\n", text, maxsplit=1)[0]
        sums = [match for match in found if re.search(r"=\s*\$?\s*$", text[: match.start()])]
        sums = [match for match in sums if match.end() <= len(sentence) + 1]
        match = sums[-1] if sums else found[0]
    else:
        match = found[-1]
    return re.sub(r"[\s$,]", "", match.group()).removesuffix(".")


def _choice(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    letters = "".join(chr(ord("A") + i) for i in range(len(choices)))
    if not letters:
        return None
    span = f"[{letters}{letters.lower()}]"
    if is_marked:
        start = text.lstrip(_DECORATION)
        for lead in ("option ", "choice ", "letter "):
            if start.casefold().startswith(lead):
                start = start[len(lead) :].lstrip(_DECORATION)
        match = re.match(rf"({span})(?![\w'’])", start)
        if match and (match.group(1).isupper() or not re.match(r"\s+\w", start[1:])):  # "a bank" is no letter
            return match.group(1).upper()
        return _named(start, choices)
    patterns = (rf"\(({span})\)", rf"(?m)^\W*([{letters}])[.):](?=\s|$)", rf"\b(?:option|choice)\s+\(?({span})\b")
    found = [(m.start(), m.group(1).upper()) for pattern in patterns for m in re.finditer(pattern, text, re.IGNORECASE)]
    if found:
        return max(found)[1]
    bare = re.match(rf"\W*([{letters}])\W*$", text)
    return bare.group(1) if bare else _named(text, choices)


def _named(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the one choice whose words stand in the text."""
    folded = _folded(text)
    named = []
    for i, choice in enumerate(choices):
        words = _folded(choice)
        if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", folded):
            named.append((len(words), i, words))
    if not named:
        return None
    longest = max(named)
    others = [words for _, i, words in named if i != longest[1] and words not in longest[2]]
    return None if others else chr(ord("A") + longest[1])


def _yes_no(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    for pattern, forms in ((_YES_NO, {"yes": "yes", "no": "no"}), (_TRUE_FALSE, {"true": "yes", "false": "no"})):
        found = [match.group(1).casefold() for match in pattern.finditer(text)]
        if not found:
            continue
        opens = pattern.match(text.lstrip(_DECORATION + "\n"))
        return forms[found[0] if is_marked or opens else found[-1]]
    return None


def _plausible(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    found = [match.group(1).casefold() for match in _PLAUSIBLE.finditer(text)]
    if not found:
        return None
    return "plausible" if (found[0] if is_marked else found[-1]) == "plausible" else "implausible"


def _date(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    found: list[tuple[int, tuple[int, int, int]]] = []
    for match in _SLASHES.finditer(text):
        month, day, year = (int(part) for part in match.groups())
        found.append((match.start(), (year, month, day)))
    for match in _ISO.finditer(text):
        year, month, day = (int(part) for part in match.groups())
        found.append((match.start(), (year, month, day)))
    for match in _IN_WORDS.finditer(text):
        month = next(i for i, name in enumerate(_MONTHS, 1) if name.startswith(match.group(1).casefold()[:3]))
        found.append((match.start(), (int(match.group(3)), month, int(match.group(2)))))
    days = [ymd for _, ymd in sorted(found) if _is_day(*ymd)]
    if not days:
        return None
    year, month, day = days[0] if is_marked else days[-1]
    return f"{month:02}/{day:02}/{year:04}"


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _text(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    """A right answer may stand anywhere in the text."""
    return None if is_marked else text.strip() or None


def _letters(text: str, choices: Sequence[str], is_marked: bool) -> str | None:
    """Behind the mark the first word; letters set apart ("y a j o", "y-a-j-o") are one word."""
    if is_marked:
        spaced = re.match(rf"[{re.escape(_DECORATION)}]*((?:[A-Za-z][\s,+.\"'-]+){{1,}}[A-Za-z])(?![A-Za-z])", text)
        if spaced and all(len(part) == 1 for part in _WORD.findall(spaced.group(1))):
            return "".join(_WORD.findall(spaced.group(1)))
        quoted = _QUOTED.search(text)
        words = [quoted.group(1)] if quoted else _WORD.findall(text)
        return words[0] if words else None
    quoted_words = _QUOTED.findall(text)
    if quoted_words:
        return str(quoted_words[-1])
    words = _WORD.findall(text)
    return words[0] if len(words) == 1 else None


_FINDERS: dict[Kind, Callable[[str, Sequence[str], bool], str | None]] = {
    Kind.NUMBER: _number,
    Kind.CHOICE: _choice,
    Kind.YES_NO: _yes_no,
    Kind.PLAUSIBLE: _plausible,
    Kind.DATE: _date,
    Kind.LETTERS: _letters,
    Kind.TEXT: _text,
}
