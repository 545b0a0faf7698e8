"""Numbers in a written answer: behind a mark, and in its conclusion.

Owns what counts as a number, and which one a sentence comes to. Never compares anything with a right answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from edge_nudge.evaluate.parts import Found, parts_of, sentences_of

MAX_NUMBER_CHARS = 40

# Every repetition below is bounded or cannot be split in two ways: a text without a number costs no more than others.
_NUM = r"(?:-?\$\s?-?|-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\$?\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.,/])(?<![A-Za-z]-)(?<!\d:)(?:{_NUM})(?:/\d+)?(?!/?\d|[.,:]\d|(?:st|nd|rd|th)\b)",
    re.ASCII | re.IGNORECASE,
)
_OPERATOR = r"\s?(?:[-+*/×÷^]|x(?=[\s\d]))\s?\$?\d"
_RESULT = re.compile(rf"[=≈][\s$*\\(\[{{]*({_NUMBER.pattern})(?!{_OPERATOR})(?!\s?=)", re.ASCII | re.IGNORECASE)
_SUM = re.compile(_OPERATOR, re.ASCII)
_BETWEEN = re.compile(r"[)\]]?(?:\s[^\W\d_]{1,20}){0,2}\s?[-+*/×÷^x]\s?")  # two numbers of a sum that is not worked out
_BOLD = re.compile(rf"\*\*\s?({_NUMBER.pattern})", re.ASCII | re.IGNORECASE)
_STEP = re.compile(r"\bstep\s?#?\d{1,3}\b", re.ASCII | re.IGNORECASE)
_LISTED = re.compile(r"^[^\w\n]{0,9}(\d{1,3})[.):]{1,2}(?=[ \t]{1,9}\S)", re.ASCII | re.MULTILINE)
_FINISHED = re.compile(r"(?:[.!?)}\]*\"$%]\s?|\d(?:\s[^\W\d_]{1,20}){0,2})$", re.ASCII)
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPELLED = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[ -]({'|'.join(_ONES[1:10])}))?|({'|'.join(reversed(_ONES))}))\b"
    r"(?!\s(?:hundred|thousand|million|of)\b)",
    re.IGNORECASE,
)


def value_of(text: str) -> Fraction | None:
    """Return the value of a number as `find_answer` gives it, None for anything else."""
    text = text.replace(",", "")
    if len(text) > MAX_NUMBER_CHARS or not re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?", text, re.ASCII):
        return None
    over, _, under = text.partition("/")
    return Fraction(over) / int(under or 1)


def _clean(number: str) -> str | None:
    number = re.sub(r"[\s$,]", "", number)
    number = number if re.search(r"/0+$", number) is None else number.partition("/")[0]
    return number if len(number) <= MAX_NUMBER_CHARS else None


def number_at(line: str, choices: Sequence[str]) -> Found:
    """Take the first number ("18 dollars, 3 more than"), or what a sum comes to; a sum without its result is none."""
    for start, part in parts_of(line):
        first = _NUMBER.search(part)
        results = list(_RESULT.finditer(part))
        if first is not None:
            if not results and _SUM.match(part, first.end()):
                return None
            number = _clean(results[-1].group(1) if results else first.group())
            return None if number is None else (start + first.start(), number)
        if (spelled := _SPELLED.search(part)) is not None:
            return start + spelled.start(), _spelled(spelled)
    return None


def _spelled(match: re.Match[str]) -> str:
    tens, ones, small = (group and group.casefold() for group in match.groups())
    if small:
        return str(_ONES.index(small))
    return str(20 + 10 * _TENS.index(tens or "") + (_ONES.index(ones) if ones else 0))


def concluded_number(text: str, choices: Sequence[str]) -> str | None:
    """In the last sentence with a number: what a sum comes to, else what is bold, else the last one."""
    places = [int(match.group(1)) for match in _LISTED.finditer(text)]
    if _breaks_off(text, places[-1:]):
        return None
    text = _STEP.sub(" ", text)
    if len(places) > 1 or 1 in places:
        text = _LISTED.sub(" ", text)
    for sentence in reversed(sentences_of(text)):
        numbers = list(_NUMBER.finditer(sentence))
        if not numbers:
            continue
        for pattern in (_RESULT, _BOLD):
            if found := list(pattern.finditer(sentence)):
                return _clean(found[-1].group(1))
        between = sentence[numbers[-2].end() : numbers[-1].start()] if len(numbers) > 1 else ""
        return None if _BETWEEN.fullmatch(between) else _clean(numbers[-1].group())
    return None


def _breaks_off(text: str, last_place: list[int]) -> bool:
    """Tell whether a text of some length ends in the middle of a sentence, or where a step should begin."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if sum(re.search(r"\w", part) is not None for part in sentences_of(_STEP.sub(" ", text))) < 3:
        return False
    is_next = any(re.fullmatch(rf"\W{{0,9}}{place + 1}[.)]?", lines[-1]) for place in last_place)
    return is_next or _STEP.search(lines[-1][-12:]) is not None or _FINISHED.search(lines[-1]) is None
