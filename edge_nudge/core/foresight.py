"""Foresight: guesses of what comes next for one model in one request, and how they turned out.

Owns where guesses come from: text the other model has drafted already, text that repeats the prompt or the answer,
and, where even its steps pay, a run of the other model. Never evaluates anything itself and never changes what is
written: a guess is evaluated along with known tokens, and the scores behind it are used only if the text comes out so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edge_nudge.core.lookup import MAX_MATCH, NOTHING, Lookup
from edge_nudge.core.schedule import DRAFTED, RUN, Odds, Schedule

Scout: TypeAlias = Callable[[int], Sequence[int]]  # so many tokens of the other model -> tokens of this one


class Foresight:
    """Follows one text and guesses how it goes on, `most` tokens at a time.

    `scout_step` is what a step of the other model takes, in steps of this one.
    """

    def __init__(self, schedule: Schedule, most: int | None = None, scout_step: float = 1.0) -> None:
        self._schedule = schedule
        self._scout_step = scout_step
        self._most = schedule.largest if most is None else most
        self._lookup = Lookup()
        self._odds = Odds()
        self._open: list[tuple[int, int]] = []  # guesses not settled yet, (token, source), behind the text
        self._drafted: Sequence[int] = ()
        self._drafted_by = DRAFTED

    def __repr__(self) -> str:
        return f"<Foresight behind {len(self._lookup)} tokens, {len(self._open)} open guesses, {self._odds!r}>"

    def follow(self, ids: Sequence[int], drafted: Sequence[int] = ()) -> None:
        """Let the text be `ids`; `drafted` is what the other model has written behind it."""
        if len(ids) < len(self._lookup):
            self._open.clear()
        for token in ids[len(self._lookup) :]:
            self._settle(token)
        self._lookup.follow(ids)
        self._drafted, self._drafted_by = drafted, DRAFTED

    def push(self, token: int) -> None:
        """Let the text be one token longer."""
        self._settle(token)
        self._lookup.push(token)
        self._drafted = self._drafted[1:] if self._drafted and self._drafted[0] == token else ()

    def guess(self, n_text: int, scout: Scout | None = None) -> list[int]:
        """Return what to evaluate along with the last `n_text` tokens of the text.

        `scout` lets the other model write on from here; it is asked where that costs less than it probably saves.
        """
        n_room = min(self._schedule.largest - n_text, self._most)
        if n_room <= 0:
            self._open = []
            return []
        tokens, sources = self._at_hand(n_room)
        n_guesses, gain = self._schedule.n_ahead(n_text, self._chances(sources))
        if scout is not None and n_guesses < n_room:
            n_run, gain_of_run = self._gain_of_run(n_text, n_room)
            if gain_of_run > gain:
                self._drafted, self._drafted_by = scout(n_run), RUN
                tokens, sources = self._at_hand(n_room)
                n_guesses, _ = self._schedule.n_ahead(n_text, self._chances(sources))
        tokens = tokens[:n_guesses]
        self._open = list(zip(tokens, sources, strict=False))
        return tokens

    def _at_hand(self, n_room: int) -> tuple[list[int], list[int]]:
        """Return guesses that cost nothing to make, and the source of each."""
        drafted = list(self._drafted[:n_room])
        found = self._lookup.find(drafted, n_room - len(drafted)) if len(drafted) < n_room else NOTHING
        sources = [self._drafted_by] * len(drafted)
        sources += [min(found.n_match + i, MAX_MATCH) for i in range(len(found.tokens))]
        return [*drafted, *found.tokens], sources

    def _gain_of_run(self, n_text: int, n_room: int) -> tuple[int, float]:
        """Return how many tokens a run of the other model should have, and what is gained by it.

        Each run costs it a call more than its tokens: it catches up in smaller pieces, and a token may be read again.
        """
        chances = self._chances([RUN] * n_room)
        n_run, gain = self._schedule.n_ahead(n_text, chances, self._scout_step, least_gain=self._scout_step)
        return n_run, gain - self._scout_step

    def _chances(self, sources: Sequence[int]) -> list[float]:
        return [self._odds.of(source) for source in sources]

    def _settle(self, token: int) -> None:
        """Learn from what stands where the first open guess is."""
        if not self._open:
            return
        guessed, source = self._open[0]
        self._odds.note(source, guessed == token)
        self._open = self._open[1:] if guessed == token else []
