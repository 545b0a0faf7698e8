"""Loop guard: notices that the answer repeats itself before the repetition is shown.

Owns the definition of a loop. Looks at text, not at authors; what to do about a loop is the decoder's business.

1. A run is the longest stretch of whole units at the end of the text that stands in the text before as well
   (both may overlap). It is held back while it goes on and released when it turns out to be something new.
2. A run is a loop at 16 tokens if it has more than 5 words, or if it overlaps what it repeats (a short cycle).
   The paper drops aligned blocks of 16 tokens; ours may begin anywhere, so a repeated sentence is caught whole.
3. A run never reaches back over text that was released or cut.
"""

from __future__ import annotations

from collections import deque

MIN_TOKENS = 16
MIN_WORDS = 5


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

    def extend(self, text: bytearray, n_old: int, n_tokens: int) -> bool:
        """Take in the unit text[n_old:] and tell whether the run is a loop now."""
        self._units.append((n_old, n_tokens))
        self._n_tokens += n_tokens
        self._end = len(text)
        while self._units and text.find(text[self.start :], 0, len(text) - 1) < 0:
            self._n_tokens -= self._units.popleft()[1]
        if self._n_tokens < MIN_TOKENS:
            return False
        run = text[self.start :]
        overlaps = text.rfind(run, 0, len(text) - 1) + len(run) > self.start
        return overlaps or len(run.split()) > MIN_WORDS

    def cut(self, end: int) -> None:
        """Forget the run: the text ends at `end` now."""
        self._units.clear()
        self._n_tokens = 0
        self._end = end
