"""One question, one answer: from a system's settings to what is kept of it.

Owns what becomes of the events of an answer. Never chooses a question and never judges an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from edge_nudge.core.events import Event, Finished, FinishReason, Piece
from edge_nudge.core.request import GenerateRequest
from edge_nudge.errors import CancelledError
from edge_nudge.evaluate.results import TurnText


class Answering(Iterator[Event], Protocol):
    """The events of one answer, as runtime.Answer gives them."""

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class Answerer(Protocol):
    """A loaded pair, or several models that write together."""

    def answer(self, request: GenerateRequest) -> Answering: ...

    def check(self, request: GenerateRequest) -> None: ...


class Stop:
    """A wish to stop, from any thread: the answer that is being written is cancelled, and no other is begun."""

    def __init__(self) -> None:
        self.is_asked = False
        self._current: Answering | None = None

    def ask(self) -> None:
        self.is_asked = True
        if (current := self._current) is not None:
            current.cancel()

    def read(self, answerer: Answerer, request: GenerateRequest) -> Answered:
        """Answer a request. Raises EngineError, and CancelledError where a stop was asked for."""
        if self.is_asked:
            raise CancelledError("the evaluation was stopped")
        self._current = answerer.answer(request)
        try:
            if self.is_asked:  # in between
                self._current.cancel()
            return read_answer(self._current)
        finally:
            self._current.close()
            self._current = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer."""

    text: str
    turns: tuple[TurnText, ...]
    finished: Finished


def read_answer(events: Iterator[Event]) -> Answered:
    """Run an answer to its end. Raises EngineError, and CancelledError where it was cancelled."""
    pieces: list[Piece] = []
    for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, Finished):
            if event.reason is FinishReason.CANCELLED:
                raise CancelledError("the answer was cancelled")
            return Answered("".join(piece.text for piece in pieces), _turns(pieces), event)
    raise AssertionError("an answer ends with Finished")


def _turns(pieces: list[Piece]) -> tuple[TurnText, ...]:
    """Join neighbours of one author and one reason: a trace of an answer in a few lines."""
    turns = []
    for (author, reason), group in groupby(pieces, key=lambda piece: (piece.author, piece.reason)):
        first, *others = group
        text = "".join(piece.text for piece in (first, *others))
        turns.append(TurnText(author=author.value, text=text, reason=reason.value, top_prob=first.top_prob))
    return tuple(turns)
