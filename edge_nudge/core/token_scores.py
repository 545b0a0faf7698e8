"""Scores of single tokens: how probable the model that wrote a token, or read it, found it.

Owns making a TokenScore from a row of scores, and what becomes of it where text is cut. Never keeps a row and never
decides anything.

1. Logs are natural and of the plain softmax of the whole row: sampling settings do not touch them.
2. The best tokens are found without sorting the vocabulary; equal scores stand in the order of their ids.
3. Whatever is cut, the joined data of the tokens is the text they stand for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from edge_nudge.core.backend import Backend
from edge_nudge.core.events import TokenScore
from edge_nudge.core.sampling import Reader, Scores


class TokenScorer:
    """Scores tokens of one model, each with the `n_top` best ones at its place."""

    def __init__(self, backend: Backend, reader: Reader, n_top: int) -> None:
        self._backend = backend
        self._reader = reader
        self._n_top = n_top

    def score(self, scores: Scores, token: int) -> TokenScore:
        """Score a token by the row of scores in front of it. Raises NonFiniteScoresError."""
        log_total = self._reader.log_total(scores)
        ids = best_tokens(scores, self._n_top) if self._n_top else []
        if ids and token not in ids:
            ids.append(token)
        top = tuple((self._shown(i), float(scores[i]) - log_total) for i in ids)
        return TokenScore(self._backend.piece(token), token, float(scores[token]) - log_total, top)

    def _shown(self, token: int) -> bytes:
        if self._backend.is_control(token):
            return self._backend.spelling(token).encode("utf-8", "surrogateescape")
        return self._backend.piece(token)


def best_tokens(scores: Scores, n: int) -> list[int]:
    """Return the ids of the `n` highest scores, highest first, the lowest ids first among equal ones."""
    n = min(n, len(scores))
    found = np.argpartition(scores, len(scores) - n)[len(scores) - n :]
    least = scores[found].min()
    above = found[scores[found] > least]
    # of several equal scores at the border any may have been found
    ids = np.concatenate([above, np.flatnonzero(scores == least)[: n - len(above)]])
    best: list[int] = ids[np.lexsort((ids, -scores[ids]))].tolist()
    return best


def without_blanks(token: TokenScore, n_blanks: int) -> TokenScore:
    """Return the token, and those at its place, without as many blanks in front as are in the text already."""
    if not n_blanks:
        return token
    return replace(
        token,
        data=_without_blanks(token.data, n_blanks),
        top=tuple((_without_blanks(data, n_blanks), logprob) for data, logprob in token.top),
    )


def split_tokens(tokens: Sequence[TokenScore], n_bytes: int) -> tuple[tuple[TokenScore, ...], list[TokenScore]]:
    """Split into the tokens that begin in the first `n_bytes` bytes and the others.

    Of a token that reaches over the border the rest is with the others.
    """
    at = 0
    for i, token in enumerate(tokens):
        if at >= n_bytes:
            return tuple(tokens[:i]), list(tokens[i:])
        n_left, at = n_bytes - at, at + len(token.data)
        if at > n_bytes:
            before, rest = token.data[:n_left], token.data[n_left:]
            rest_of = TokenScore(rest, token.id, 0.0, ((rest, 0.0),) if token.top else (), is_rest=True)
            return (*tokens[:i], replace(token, data=before)), [rest_of, *tokens[i + 1 :]]
    return tuple(tokens), []


def join_tokens(tokens: Iterable[TokenScore]) -> list[TokenScore]:
    """Return the tokens of a whole answer with the rest of a token put back to its beginning."""
    joined: list[TokenScore] = []
    for token in tokens:
        if token.is_rest and joined:
            joined[-1] = replace(joined[-1], data=joined[-1].data + token.data)
        else:
            joined.append(token)
    return joined


def _without_blanks(data: bytes, n_blanks: int) -> bytes:
    rest = data.lstrip(b" ")
    return data[min(len(data) - len(rest), n_blanks) :]
