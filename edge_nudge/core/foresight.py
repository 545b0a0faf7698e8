"""Foresight: guesses of what comes next for one model in one request, and how they turned out.

Owns where guesses come from: text the other model has drafted already, and text that repeats the prompt or the answer.
Never evaluates anything and never changes what is written: a guess is evaluated along with known tokens, and the
scores behind it are used only if the text comes out so.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_nudge.core.lookup import MAX_MATCH, NOTHING, Lookup
from edge_nudge.core.schedule import DRAFTED, Odds, Schedule


class Foresight:
    """Follows one text and guesses how it goes on, `most` tokens at a time."""

    def __init__(self, schedule: Schedule, most: int | None = None) -> None:
        self._schedule = schedule
        self._most = schedule.largest if most is None else most
        self._lookup = Lookup()
        self._odds = Odds()
        self._open: list[tuple[int, int]] = []  # guesses not settled yet, (token, source), behind the text
        self._drafted: Sequence[int] = ()

    def __repr__(self) -> str:
        return f"<Foresight behind {len(self._lookup)} tokens, {len(self._open)} open guesses, {self._odds!r}>"

    def follow(self, ids: Sequence[int], drafted: Sequence[int] = ()) -> None:
        """Let the text be `ids`; `drafted` is what the other model has written behind it."""
        if len(ids) < len(self._lookup):
            self._open.clear()
        for token in ids[len(self._lookup) :]:
            self._settle(token)
        self._lookup.follow(ids)
        self._drafted = drafted

    def push(self, token: int) -> None:
        """Let the text be one token longer."""
        self._settle(token)
        self._lookup.push(token)
        self._drafted = self._drafted[1:] if self._drafted and self._drafted[0] == token else ()

    def guess(self, n_text: int) -> list[int]:
        """Return what to evaluate along with the last `n_text` tokens of the text."""
        n_room = min(self._schedule.largest - n_text, self._most)
        if n_room <= 0:
            self._open = []
            return []
        drafted = list(self._drafted[:n_room])
        found = self._lookup.find(drafted, n_room - len(drafted)) if len(drafted) < n_room else NOTHING
        sources = [DRAFTED] * len(drafted)
        sources += [min(found.n_match + i, MAX_MATCH) for i in range(len(found.tokens))]
        n_guesses = self._schedule.n_ahead(n_text, [self._odds.of(source) for source in sources])
        tokens = [*drafted, *found.tokens][:n_guesses]
        self._open = list(zip(tokens, sources, strict=False))
        return tokens

    def _settle(self, token: int) -> None:
        """Learn from what stands where the first open guess is."""
        if not self._open:
            return
        guessed, source = self._open[0]
        self._odds.note(source, guessed == token)
        self._open = self._open[1:] if guessed == token else []
