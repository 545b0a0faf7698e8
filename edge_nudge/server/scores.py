"""Scores of tokens in OpenAI's two shapes.

Owns both shapes and how a token that is no whole character is spelled. Never computes a score.

1. Entries are sorted from the best one down; the chosen token is in the older shape's table in any case.
2. An older-shape offset counts characters of the text it belongs to, prompt included where it is echoed.
3. A token that lies across two pieces has one entry in a whole answer; in chunks its rest is an entry of its own
   with a score of 0.
4. Minus infinity, for which JSON has no word, is -9999, as OpenAI's servers have it.
5. Ids, and the bytes that the older shape lacks, stand beside OpenAI's fields.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from edge_nudge.core.events import TokenScore

_LEAST = -9999.0


def spell(data: bytes) -> str:
    """Return the text of a token, or its bytes as `bytes:\\xe2\\x82` where they are no text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class ChatScores:
    """The newer shape: `{"content": [{token, logprob, bytes, top_logprobs}]}`."""

    def __init__(self, n_top: int) -> None:
        self._n_top = n_top

    def document(self, tokens: Sequence[TokenScore]) -> dict[str, Any]:
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, token: TokenScore) -> dict[str, Any]:
        top = [_named(data, logprob) for data, logprob in token.top[: self._n_top]]
        rest = {"is_rest": True} if token.is_rest else {}
        return {**_named(token.data, token.logprob), "top_logprobs": top, "id": token.id, **rest}


def _named(data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": spell(data), "logprob": _number(logprob), "bytes": list(data)}


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


class LegacyScores:
    """The older shape: four lists in step. One object follows one text, so that offsets go on from call to call."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_chars = 0

    def document(self, tokens: Sequence[TokenScore]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._n_chars)
            self._n_chars += len(self._decoder.decode(token.data))
        return {
            "tokens": [spell(token.data) for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [self._table(token) for token in tokens],
            "text_offset": offsets,
            "ids": [token.id for token in tokens],
            "bytes": [list(token.data) for token in tokens],
            "is_rest": [token.is_rest for token in tokens],
        }

    @staticmethod
    def _table(token: TokenScore) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        table: dict[str, float] = {}
        for data, logprob in token.top:
            table.setdefault(spell(data), max(logprob, _LEAST))  # of two that read alike the better one
        return table or {spell(token.data): max(token.logprob, _LEAST)}
