"""Draft: text a model has written that is not accepted yet.

Owns cutting a model's tokens into whole words and characters. Never accepts anything.

1. Every state is valid UTF-8 followed by at most the beginning of one character.
2. Blanks that are in the text already (the overlap) are swallowed, and all blanks in front of an answer.
"""

from __future__ import annotations

import math

from edge_nudge.core.events import TokenScore
from edge_nudge.core.token_scores import split_tokens, without_blanks
from edge_nudge.core.words import first_word_end, whole_characters


class Draft:
    """Tokens of one model since the last accepted byte."""

    def __init__(self, overlap: int, *, opens_answer: bool) -> None:
        self._data = bytearray()
        self._starts: list[int] = []
        self._top_probs: list[float] = []  # of the same tokens: the top-1 probability where each was drawn
        self.rest_prob = math.nan  # of the token that the rest begins with or inside
        self._scored: list[TokenScore] = []  # of the same tokens, where they are scored; their data is the text
        self._n_left = 1 << 30 if opens_answer else overlap  # blanks that may still be swallowed
        self._overlap = overlap
        self._n_swallowed = 0

    def __repr__(self) -> str:
        return f"<Draft {bytes(self._data)!r}, {len(self._starts)} tokens>"

    @property
    def n_tokens(self) -> int:
        return len(self._starts)

    @property
    def n_blanks(self) -> int:
        """How many blanks are still swallowed if they come next."""
        return self._n_left

    @property
    def n_lead(self) -> int:
        """Blanks swallowed beyond the overlap: they belong to the prompt."""
        return max(0, self._n_swallowed - self._overlap)

    def fork(self) -> Draft:
        """Return a draft that goes on from the same text, for trying what may come; it has no scores."""
        draft = Draft(0, opens_answer=False)
        draft._data = self._data[:]
        draft._n_left = self._n_left
        return draft

    def can_take(self, piece: bytes) -> bool:
        """Tell whether the text stays valid UTF-8 with this piece."""
        return (piece.isascii() and not self.has_rest) or whole_characters(bytes(self._data) + piece) is not None

    def push(self, piece: bytes, score: TokenScore | None = None, top_prob: float = math.nan) -> None:
        """Add the text of one token, and its score if tokens are scored; `top_prob` where the rule reads it."""
        if score is not None:
            self._scored.append(without_blanks(score, self._n_left))
        if self._n_left:
            rest = piece.lstrip(b" ")
            n_blanks = min(len(piece) - len(rest), self._n_left)
            piece = piece[n_blanks:]
            self._n_swallowed += n_blanks
            self._n_left = 0 if piece else self._n_left - n_blanks
        self._starts.append(len(self._data))
        self._top_probs.append(top_prob)
        self._data += piece

    def word_size(self) -> int | None:
        """Return the size in bytes of the first word, or None while it may go on."""
        text = bytes(self._data[: self.whole_size()]).decode("utf-8")
        end = first_word_end(text)
        return None if end is None else len(text[:end].encode("utf-8"))

    def whole_size(self) -> int:
        """Return the size in bytes of the whole characters."""
        size = whole_characters(bytes(self._data))
        assert size is not None, "can_take is asked before push"
        return size

    def word(self, size: int) -> bytes:
        return bytes(self._data[:size])

    @property
    def rest(self) -> bytes:
        """What is drafted and not taken yet; its last character may be incomplete."""
        return bytes(self._data)

    def take(self, size: int) -> tuple[bytes, tuple[int, ...], tuple[TokenScore, ...]]:
        """Remove the first `size` bytes and return them with the tokens that begin in them: offsets and scores.

        A token that was swallowed whole goes with the text behind it.
        """
        data = bytes(self._data[:size])
        starts = tuple(start for start in self._starts if start < size)
        n_begun = sum(start <= size for start in self._starts)
        if n_begun:
            self.rest_prob = self._top_probs[n_begun - 1]
        del self._top_probs[: len(starts)]
        self._starts = [start - size for start in self._starts[len(starts) :]]
        del self._data[:size]
        if not self._scored:
            return data, starts, ()
        tokens, self._scored = split_tokens(self._scored, size)
        return data, starts, tokens

    @property
    def has_rest(self) -> bool:
        """Whether the last character is incomplete."""
        return self.whole_size() < len(self._data)
