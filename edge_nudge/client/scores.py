"""Scores of tokens, read from OpenAI's two shapes as our server writes them (server/scores.py).

Owns the way back. Never asks for anything. Raises KeyError, TypeError, ValueError for what is no such shape.

1. The ids and bytes that our server adds are used; in the older shape's tables a token is known by its spelling alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from edge_nudge.core.events import TokenScore

MINUS_INFINITY = -9999.0
_SPELLED_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


def chat_scores(document: Mapping[str, Any]) -> tuple[TokenScore, ...]:
    """Read `{"content": [{token, logprob, bytes, top_logprobs, id}]}`."""
    return tuple(
        TokenScore(
            bytes(entry["bytes"]),
            entry["id"],
            _number(entry["logprob"]),
            tuple((bytes(other["bytes"]), _number(other["logprob"])) for other in entry["top_logprobs"]),
            entry.get("is_rest", False),
        )
        for entry in document["content"]
    )


def legacy_scores(document: Mapping[str, Any], n_top: int) -> tuple[TokenScore, ...]:
    """Read the lists in step; with `n_top` 0 the tables hold the token itself, which nobody asked for."""
    names = ("bytes", "ids", "token_logprobs", "top_logprobs", "is_rest")
    return tuple(
        TokenScore(bytes(data), token, _logprob(logprob), _table(top) if n_top else (), is_rest)
        for data, token, logprob, top, is_rest in zip(*(document[name] for name in names), strict=True)
    )


def _logprob(found: float | None) -> float | None:
    return None if found is None else _number(found)


def _number(found: float) -> float:
    """Return a logarithm; -9999 stands for minus infinity."""
    return -math.inf if found == MINUS_INFINITY else float(found)


def _table(table: Mapping[str, float] | None) -> tuple[tuple[bytes, float], ...]:
    return tuple((_unspell(text), _number(logprob)) for text, logprob in (table or {}).items())


def _unspell(text: str) -> bytes:
    match = _SPELLED_BYTES.fullmatch(text)
    return text.encode() if match is None else bytes.fromhex(match[1].replace("\\x", ""))
