"""The shared answer: what has been accepted, who wrote it, and how much of it may be shown.

Owns the accepted bytes, the stop strings, the base model's end strings and the loop guard. Never sees tokens or
models; never shows what it might have to take back.

1. `text` is what both models are told; it is whole characters at every moment.
2. A unit (a base token, a nudging word) is shown whole, once nothing in it can still be taken back.
3. A match cuts the text at its start; what is behind it is neither shown nor counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from edge_nudge.core.events import HandoffReason, Piece, Role, TokenScore
from edge_nudge.core.loops import LoopGuard, Repetition
from edge_nudge.core.matching import StopMatcher
from edge_nudge.core.token_scores import split_tokens
from edge_nudge.core.words import whole_characters


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of text written at once; the byte offsets of its tokens tell what a cut leaves of it."""

    author: Role
    data: bytes
    token_starts: tuple[int, ...]  # offsets into data, ascending
    top_prob: float | None
    reason: HandoffReason
    tokens: tuple[TokenScore, ...] = ()  # where tokens are scored; their joined data is `data`
    instead: bytes | None = None  # as in Piece

    def cut(self, n_bytes: int) -> Unit:
        """Return the first `n_bytes` bytes, with the tokens that begin in them."""
        starts = tuple(t for t in self.token_starts if t < n_bytes)
        return replace(
            self, data=self.data[:n_bytes], token_starts=starts, tokens=split_tokens(self.tokens, n_bytes)[0]
        )


class Verdict(Enum):
    """What a new unit brought about."""

    GO_ON = "go_on"
    STOP_STRING = "stop_string"  # the text was cut at the match; the answer is finished
    TURN_END = "turn_end"  # the text was cut where the base model began a new turn of its own format
    LOOP = "loop"  # the text was cut where the repetition began


class Transcript:
    """One growing answer."""

    def __init__(
        self,
        stop: Sequence[bytes] = (),
        end_strings: Sequence[bytes] = (),
        *,
        loop_guard: bool = True,
        is_shared: bool = True,
    ) -> None:
        self._text = bytearray()
        self._n_shown = 0
        self._waiting: deque[Unit] = deque()
        self._stops = StopMatcher(stop)
        self._ends = StopMatcher(end_strings)
        self._loops = LoopGuard() if loop_guard else None
        self._is_shared = is_shared
        self._turn_start: int | None = None  # where the base model's turn began, None in a nudging turn
        self.n_tokens = 0  # accepted, of both writers
        self.stop_string: str | None = None
        self.loop_author: Role | None = None

    def __repr__(self) -> str:
        return f"<Transcript {bytes(self._text)!r}, {self._n_shown} bytes shown, {self.n_tokens} tokens>"

    @property
    def text(self) -> bytes:
        return bytes(self._text)

    def __len__(self) -> int:
        return len(self._text)

    def begin_turn(self, role: Role) -> None:
        """Note who writes now: end strings count only inside one turn of the base model."""
        self._turn_start = len(self._text) if role is Role.BASE else None

    def append(self, unit: Unit) -> Verdict:
        """Accept a unit; its data is whole characters and not empty."""
        n_old = len(self._text)
        self._text += unit.data
        self._waiting.append(unit)
        self.n_tokens += len(unit.token_starts)
        match = self._stops.find(self._text, n_old)
        if match is not None:
            self.stop_string = match.string.decode()
            self.cut(match.start)
            return Verdict.STOP_STRING
        if self._turn_start is not None:
            match = self._ends.find(self._text, n_old, self._turn_start)
            if match is not None:
                self.cut(match.start)
                return Verdict.TURN_END
        if self._loops is not None:
            repetition = self._loops.extend(self._text, n_old, len(unit.token_starts))
            if repetition is not Repetition.NONE and self._is_loop(repetition, self._loops.start):
                self.cut(self._loops.start)
                return Verdict.LOOP
        return Verdict.GO_ON

    def _is_loop(self, repetition: Repetition, start: int) -> bool:
        """Tell whether a repetition is cut, and note who began it.

        A cycle is, whoever writes. What the base model says again costs nothing: the nudging model goes on instead. To
        cut what the nudging model says again would end the answer, and many such answers are not at their end.
        """
        self.loop_author = self._author_at(start)
        if repetition is Repetition.CYCLE:
            return True
        return self._is_shared and self.loop_author is Role.BASE

    def cut(self, end: int) -> None:
        """Drop everything from offset `end` on; nothing of it has been shown."""
        assert self._n_shown <= end, "shown text is never taken back"
        while self._waiting and len(self._text) > end:
            unit = self._waiting.pop()
            start = len(self._text) - len(unit.data)
            kept = unit.cut(max(0, end - start))
            self.n_tokens -= len(unit.token_starts) - len(kept.token_starts)
            del self._text[max(start, end) :]
            if kept.data:
                self._waiting.append(kept)
        if self._loops is not None:
            self._loops.cut(len(self._text))

    def show(self) -> list[Piece]:
        """Return the pieces that can be shown by now."""
        safe = self._stops.hold_from(self._text, self._n_shown)
        if self._turn_start is not None:
            safe = min(safe, self._ends.hold_from(self._text, max(self._turn_start, self._n_shown)))
        if self._loops is not None:
            safe = min(safe, self._loops.start)
        return self._release(safe)

    def flush(self) -> list[Piece]:
        """Return all pieces that are left: the answer is finished."""
        return self._release(len(self._text))

    def _release(self, end: int) -> list[Piece]:
        pieces = []
        while self._waiting and self._n_shown + len(self._waiting[0].data) <= end:
            unit = self._waiting.popleft()
            self._n_shown += len(unit.data)
            text, n_tokens = unit.data.decode("utf-8"), len(unit.token_starts)
            pieces.append(Piece(text, unit.author, unit.top_prob, unit.reason, n_tokens, unit.tokens, unit.instead))
        return pieces

    def _author_at(self, offset: int) -> Role:
        start = self._n_shown
        for unit in self._waiting:
            start += len(unit.data)
            if offset < start:
                return unit.author
        raise AssertionError("a run lies in text that is held back")


def cut_to_tokens(unit: Unit, n_tokens: int) -> Unit:
    """Return the longest part of a unit that is its first `n_tokens` tokens, or less, and whole characters."""
    if n_tokens >= len(unit.token_starts):
        return unit
    part = unit.data[: unit.token_starts[n_tokens]]
    n_whole = whole_characters(part)
    assert n_whole is not None, "a unit is valid UTF-8"
    return unit.cut(n_whole)
