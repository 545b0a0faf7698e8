"""Sentences of a written answer, as those who look for something in it need them.

Owns where a sentence ends here: also at the end of a line, and at a semicolon.
"""

from __future__ import annotations

import re

Found = tuple[int, str] | None  # where it begins, and what it is

_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n|(?<=[.!?][*\")])\s|;")


def sentences_of(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


def parts_of(line: str) -> list[tuple[int, str]]:
    """Return the first sentence of a line, and the line, with where they begin."""
    first = _SENTENCE_END.search(line.rstrip())
    return [(0, line[: first.start()]), (0, line)] if first else [(0, line)]
