"""One streamed answer: chunks as they come -> the events that a pair in this process gives.

Owns the order of an answer and its totals. Never touches a connection but to end it from another thread.

1. Each chunk with text is one Piece; a Handoff stands before a piece of another author. Handoffs behind which
   nothing was shown are not known here, the totals count them.
2. Finished comes last, once: with the server's totals; after `cancel` with what was counted here, because a server
   whose client has gone says nothing any more.
3. An error in the middle is raised where it comes: what was given before it stays.
4. A stream that ends without Finished has been cut off, and that is an error.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from edge_nudge.client.calls import Generation
from edge_nudge.client.failures import connection_error, of_document, refusal
from edge_nudge.client.scores import chat_scores, legacy_scores
from edge_nudge.client.sse import EventReader
from edge_nudge.client.target import Target
from edge_nudge.core.events import (
    Event,
    FinishDetail,
    Finished,
    FinishReason,
    Handoff,
    HandoffReason,
    Piece,
    Role,
    TokenScore,
    Usage,
)
from edge_nudge.document import finished_of
from edge_nudge.errors import EdgeNudgeError, ServerError, ServerLostError

DONE = "[DONE]"


class Exchange:
    """What both streams do with the bytes of one answer. Use it once."""

    def __init__(self, generation: Generation, target: Target, clock: Callable[[], float] = time.perf_counter) -> None:
        self._generation = generation
        self._target = target
        self._clock = clock
        self._started = clock()
        self._reader = EventReader()
        self._author: Role | None = None
        self._usage = Usage()  # as counted here
        self._last: Mapping[str, Any] | None = None  # the chunk that ended the answer
        self._socket: Any = None
        self._is_cancelled = False
        self.is_over = False

    # --- the connection

    def begin(self) -> dict[str, Any]:
        """Return what httpx is told; the clock starts."""
        self._started = self._clock()
        return self._generation.arguments()

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Take what httpx tells of its steps: a connection is known before there is an answer on it."""
        if name in ("connection.connect_unix_socket.complete", "connection.connect_tcp.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._is_cancelled:
                self._hang_up()

    def cancel(self) -> None:
        """End the answer, from any thread: whoever waits for bytes gets no more."""
        self._is_cancelled = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it has ended by itself
                self._socket.shutdown(socket.SHUT_RDWR)

    def refusal(self, status: int, body: bytes) -> EdgeNudgeError:
        """Return the error of an answer that is not 200."""
        return refusal(status, body)

    def broken_off(self, error: Exception) -> Finished:
        """Return the end of an answer whose connection we ended. Raises ServerLostError, NoServerError if it broke."""
        if self._is_cancelled:
            return self._cancelled()
        raise connection_error(error, self._target, has_begun=self._author is not None) from error

    def end(self) -> list[Event]:
        """Take the end of the stream. Raises ServerLostError if the answer had not ended."""
        if self.is_over:
            return []
        if self._last is not None:
            self.is_over = True
            with self._reading():
                return [finished_of(self._last["nudge"])]
        if self._is_cancelled:
            return [self._cancelled()]
        raise ServerLostError(f"the server at {self._target.address} broke an answer off: it may be stopping")

    # --- the answer

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take bytes and yield the events they complete. Raises the error that the server sends."""
        for text in self._reader.feed(data):
            if text == DONE:
                yield from self.end()
                return
            with self._reading():
                events = self._chunk(json.loads(text))
            yield from events

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ServerError(
                f"the server at {self._target.address} streams otherwise than edge-nudge does ({error!r}): "
                f"is it another server?"
            ) from error

    def _chunk(self, chunk: Mapping[str, Any]) -> list[Event]:
        if "error" in chunk:
            raise of_document(chunk["error"])
        events: list[Event] = []
        for choice in chunk["choices"][:1]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            if text:
                events = self._piece(text, chunk["nudge"], self._scores(choice))
            if choice.get("finish_reason") is not None:
                self._last = chunk
        return events

    def _piece(self, text: str, nudge: Mapping[str, Any], tokens: tuple[TokenScore, ...]) -> list[Event]:
        author, reason = Role(nudge["author"]), HandoffReason(nudge["reason"])
        instead = None if nudge["instead"] is None else nudge["instead"].encode()
        piece = Piece(text, author, nudge["top_prob"], reason, nudge["n_tokens"], tokens, instead)
        handoff: list[Event] = []
        if self._author is None:
            self._usage.first_piece_s = self._clock() - self._started
        elif author is not self._author:
            self._usage.n_handoffs += 1
            handoff = [Handoff(author, reason, piece.top_prob)]
        self._author = author
        usage = self._usage.of(author)
        usage.n_written += piece.n_tokens
        usage.n_chars += len(text)
        return [*handoff, piece]

    def _scores(self, choice: Mapping[str, Any]) -> tuple[TokenScore, ...]:
        document = choice.get("logprobs")
        if not document:
            return ()
        return (
            chat_scores(document)
            if "content" in document
            else legacy_scores(document, self._generation.body["logprobs"])
        )

    def _cancelled(self) -> Finished:
        self.is_over = True
        self._usage.total_s = self._clock() - self._started
        return Finished(
            FinishReason.CANCELLED, FinishDetail.CANCELLED, self._usage, self._generation.body.get("seed", 0)
        )
