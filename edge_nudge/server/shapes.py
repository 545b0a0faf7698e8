"""Answers as clients read them: OpenAI's chat and completion objects, whole and in chunks.

Owns the shapes. Never waits, never sends, never sees the pair.

1. One id and one `created` throughout. Chunks: role, content, an empty delta with finish_reason, usage if asked for.
2. Ours beside OpenAI's: `nudge` with each piece (who wrote it and why) and with the end (the totals), `timings` with
   the end, under llama-server's names.
3. A score belongs to the model that wrote the token. A token that is no whole character is spelled as bytes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from edge_nudge.core.events import Cause, FinishReason, TokenScore, Usage
from edge_nudge.core.token_scores import join_tokens
from edge_nudge.document import finished_document, piece_document, usage_document
from edge_nudge.server.jobs import Echoed, Ended, Item, Wrote
from edge_nudge.server.scores import ChatScores, LegacyScores


class Shape(Protocol):
    """How one kind of answer is written down."""

    id: str
    prompt_field: str

    def begin(self) -> list[dict[str, Any]]:
        """Return the chunks before the first item."""
        ...

    def chunks(self, item: Item) -> list[dict[str, Any]]:
        """Return the chunks of one item."""
        ...

    def end(self) -> list[dict[str, Any]]:
        """Return the chunks behind the last item."""
        ...

    def whole(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return the answer in one object."""
        ...


class _Shape:
    def __init__(self, model: str, *, prefix: str, kind: str, has_usage: bool) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._model, self._kind, self._has_usage = model, kind, has_usage
        self._created = int(time.time())
        self._ended: list[Ended] = []

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self._created, "model": self._model, "choices": choices, **more,
        }  # fmt: skip

    def _chunk(self, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
        usage = {"usage": None} if self._has_usage else {}
        return self._object(self._kind, [choice], **usage, **more)

    def end(self) -> list[dict[str, Any]]:
        if not self._has_usage:
            return []
        return [self._object(self._kind, [], usage=_usage(self._ended))]


class ChatShape(_Shape):
    """chat.completion and its chunks."""

    prompt_field = "messages"

    def __init__(self, model: str, *, n_top: int | None, has_usage: bool = False) -> None:
        super().__init__(model, prefix="chatcmpl", kind="chat.completion.chunk", has_usage=has_usage)
        self._scores = None if n_top is None else ChatScores(n_top)

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(_delta({"role": "assistant", "content": ""}))]

    def chunks(self, item: Item) -> list[dict[str, Any]]:
        if isinstance(item, Wrote):
            piece = item.piece
            scores = None if self._scores is None else self._scores.document(piece.tokens)
            return [self._chunk(_delta({"content": piece.text}, scores), nudge=piece_document(piece))]
        if isinstance(item, Ended):
            self._ended.append(item)
            choice = _delta({}, None, item.finished.reason.value)
            return [self._chunk(choice, **_totals(item))]
        return []

    def whole(self, items: Sequence[Item]) -> dict[str, Any]:
        pieces = [item.piece for item in items if isinstance(item, Wrote)]
        ended = [item for item in items if isinstance(item, Ended)]
        scores = None
        if self._scores is not None:
            scores = self._scores.document(join_tokens([token for piece in pieces for token in piece.tokens]))
        text = "".join(piece.text for piece in pieces)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": scores,
            "finish_reason": ended[-1].finished.reason.value,
        }
        return self._object("chat.completion", [choice], usage=_usage(ended), **_totals(ended[-1]))


class TextShape(_Shape):
    """text_completion and its chunks, of one prompt or of several."""

    prompt_field = "prompt"

    def __init__(self, model: str, *, n_prompts: int, has_scores: bool, has_usage: bool = False) -> None:
        super().__init__(model, prefix="cmpl", kind="text_completion", has_usage=has_usage)
        self._has_scores = has_scores
        self._is_single = n_prompts == 1
        self._scores: dict[int, LegacyScores] = {}

    def begin(self) -> list[dict[str, Any]]:
        return []

    def chunks(self, item: Item) -> list[dict[str, Any]]:
        if isinstance(item, Echoed):
            return [self._chunk(self._choice(item.index, item.text, item.tokens))]
        if isinstance(item, Wrote):
            piece = item.piece
            return [self._chunk(self._choice(item.index, piece.text, piece.tokens), nudge=piece_document(piece))]
        if isinstance(item, Ended):
            self._ended.append(item)
            tokens = () if item.end_token is None else (item.end_token,)
            choice = self._choice(item.index, "", tokens, item.finished.reason.value)
            return [self._chunk(choice, **_totals(item))]
        return []

    def whole(self, items: Sequence[Item]) -> dict[str, Any]:
        ended = [item for item in items if isinstance(item, Ended)]
        choices = []
        for end in ended:
            text = ""
            tokens: list[TokenScore] = []
            for item in items:
                if isinstance(item, Echoed) and item.index == end.index:
                    text += item.text
                    tokens += item.tokens or ()
                elif isinstance(item, Wrote) and item.index == end.index:
                    text += item.piece.text
                    tokens += item.piece.tokens
            tokens += [] if end.end_token is None else [end.end_token]
            choice = self._choice(end.index, text, join_tokens(tokens), end.finished.reason.value)
            choices.append(choice if self._is_single else {**choice, **_totals(end)})
        more = _totals(ended[0]) if self._is_single else {}
        return self._object("text_completion", choices, usage=_usage(ended), **more)

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenScore] | None, reason: str | None = None
    ) -> dict[str, Any]:
        scores = None
        if self._has_scores:
            scores = self._scores.setdefault(index, LegacyScores()).document(tokens or ())
        return {"text": text, "index": index, "logprobs": scores, "finish_reason": reason}


def _delta(delta: dict[str, Any], scores: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": reason}


def _totals(end: Ended) -> dict[str, Any]:
    return {"nudge": finished_document(end.finished, end.request), "timings": timings(end.finished.usage)}


def timings(usage: Usage) -> dict[str, Any]:
    """Return llama-server's figures: reading is the time to the first piece, writing the time after it."""
    first_s = usage.total_s if usage.first_piece_s is None else usage.first_piece_s
    n_read, read_ms = usage.base.evaluated[Cause.PROMPT], first_s * 1000
    n_written, written_ms = usage.n_completion, max(0.0, usage.total_s - first_s) * 1000

    def rate(n_tokens: int, ms: float) -> float | None:
        return n_tokens / ms * 1000 if ms > 0 else None

    return {
        "prompt_n": n_read,
        "prompt_ms": read_ms,
        "prompt_per_token_ms": read_ms / n_read if n_read else None,
        "prompt_per_second": rate(n_read, read_ms),
        "predicted_n": n_written,
        "predicted_ms": written_ms,
        "predicted_per_token_ms": written_ms / n_written if n_written else None,
        "predicted_per_second": rate(n_written, written_ms),
        "cache_n": usage.base.n_reused,
    }


def is_cancelled(items: Sequence[Item]) -> bool:
    """Tell whether an answer was cut short."""
    return any(isinstance(i, Ended) and i.finished.reason is FinishReason.CANCELLED for i in items)


def _usage(ended: Sequence[Ended]) -> dict[str, Any]:
    """Return the sums over all prompts."""
    sums: dict[str, Any] = {}
    for document in _documents(ended):
        for name, n_tokens in document.items():
            sums[name] = sums.get(name, 0) + n_tokens
    cached = sum(end.finished.usage.base.n_reused for end in ended)
    return {**sums, "prompt_tokens_details": {"cached_tokens": cached}}


def _documents(ended: Sequence[Ended]) -> Iterator[dict[str, int]]:
    for end in ended:
        yield usage_document(end.finished.usage)
