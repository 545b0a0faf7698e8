"""Loop guard: notices that the answer repeats itself before the repetition is shown.

Owns the definition of a repetition. Looks at text, not at authors; who may repeat what is the transcript's business.

1. A run is the longest stretch of whole units at the end of the text that stands in the text before as well
   (both may overlap). It is held back while it goes on and released when it turns out to be something new.
2. From 16 tokens on a run is a cycle if it overlaps what it repeats: the text goes round. It is said again if it has
   more than 5 words and does not: a phrase, a step of a reckoning or an item of a list may well come twice.
   The paper drops aligned blocks of 16 tokens; ours may begin anywhere, so a repeated sentence is caught whole.
3. A run never reaches back over text that was released or cut.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

MIN_TOKENS = 16
MIN_WORDS = 5


class Repetition(Enum):
    """What the end of a text is."""

    NONE = "none"
    AGAIN = "again"
    CYCLE = "cycle"


class LoopGuard:
    """Follows one growing text, unit by unit."""

    def __init__(self) -> None:
        self._units: deque[tuple[int, int]] = deque()  # (start offset, tokens) of each unit in the run
        self._n_tokens = 0
        self._end = 0

    @property
    def start(self) -> int:
        """Offset where the current run starts; the end of the text if there is none."""
        return self._units[0][0] if self._units else self._end

    def extend(self, text: bytearray, n_old: int, n_tokens: int) -> Repetition:
        """Take in the unit text[n_old:] and tell what the run is now."""
        self._units.append((n_old, n_tokens))
        self._n_tokens += n_tokens
        self._end = len(text)
        while self._units and text.find(text[self.start :], 0, len(text) - 1) < 0:
            self._n_tokens -= self._units.popleft()[1]
        if self._n_tokens < MIN_TOKENS:
            return Repetition.NONE
        run = text[self.start :]
        if text.rfind(run, 0, len(text) - 1) + len(run) > self.start:
            return Repetition.CYCLE
        return Repetition.AGAIN if len(run.split()) > MIN_WORDS else Repetition.NONE

    def cut(self, end: int) -> None:
        """Forget the run: the text ends at `end` now."""
        self._units.clear()
        self._n_tokens = 0
        self._end = end
