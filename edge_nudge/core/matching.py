"""Stop strings over a growing text.

Owns finding a match across any cut of the text and saying how much must be held back. Never cuts anything itself.

1. The match that is complete first wins, the longest of those: the result does not depend on how the text arrives.
2. Text that may be the beginning of a match is held back; it is released when it turns out to be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string at text[start:end]."""

    start: int
    end: int
    string: bytes


class StopMatcher:
    """Finds the first of several strings in a text that only grows."""

    def __init__(self, strings: Sequence[bytes]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)

    def find(self, text: bytearray, n_old: int, floor: int = 0) -> Match | None:
        """Return the match that ends first behind `n_old` and starts at `floor` or later."""
        best: Match | None = None
        begin = max(floor, n_old - self._longest + 1)
        for string in self._strings:
            start = text.find(string, begin)
            if start >= 0:
                end = start + len(string)
                if best is None or (end, start) < (best.end, best.start):
                    best = Match(start, end, string)
        return best

    def hold_from(self, text: bytearray, floor: int = 0) -> int:
        """Return where the part of `text` begins that may still become a match; len(text) if none may."""
        for start in range(max(floor, len(text) - self._longest + 1), len(text)):
            tail = bytes(text[start:])
            if any(string.startswith(tail) for string in self._strings):
                return start
        return len(text)
