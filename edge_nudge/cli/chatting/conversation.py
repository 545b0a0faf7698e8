"""What was said in a chat: turns with their authors, and the messages that a request is made of.

Owns the conversation as values. Never asks a model, reads a file or writes to a screen.

1. A turn is one message and its answer; an answer that was stopped is kept as far as it came.
2. Every change gives a new conversation, so the one before can always be had back.
3. An answer is sent back exactly as it came, so that the caches of both models still hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edge_nudge.core.events import Piece, Role


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an answer by one author."""

    author: Role
    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the user and what was answered; `ending` is the value of a FinishDetail, or "error".

    `n_context` is about how many tokens the conversation then took in each model, where that is known.
    """

    user: str
    spans: tuple[Span, ...]
    ending: str
    n_context: Mapping[Role, int] | None = None

    @property
    def answer(self) -> str:
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, slots=True)
class Conversation:
    """All turns so far, oldest first, behind an optional system message."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()

    def messages(self, user: str) -> list[dict[str, str]]:
        """Return what is sent to get an answer to `user`."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
        return [*messages, {"role": "user", "content": user}]

    def with_turn(self, turn: Turn) -> Conversation:
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Conversation:
        return replace(self, turns=self.turns[:-1])

    def with_system(self, system: str | None) -> Conversation:
        return replace(self, system=system)


def spans_of(pieces: Iterable[Piece]) -> tuple[Span, ...]:
    """Join the pieces of an answer, neighbours of one author into one span."""
    spans: list[Span] = []
    for piece in pieces:
        if spans and spans[-1].author is piece.author:
            spans[-1] = Span(piece.author, spans[-1].text + piece.text)
        elif piece.text:
            spans.append(Span(piece.author, piece.text))
    return tuple(spans)
