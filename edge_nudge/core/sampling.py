"""From a row of scores to a decision: what the model thinks (Probe) and which token is drawn.

Owns softmax, the filters and the random numbers. Never keeps a row: a row is valid until the next native call.

1. Probabilities are the plain softmax of the raw scores; temperature and filters touch only the draw.
2. NaN and infinity are refused before any comparison: every comparison with NaN is false.
3. A random number depends on seed, who draws and position alone, so no schedule of evaluation changes an answer.
4. No sort of the vocabulary: one pass for the maximum, one for the sum; filters sort only what survives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_nudge.core.events import Role
from edge_nudge.core.request import SamplingParams
from edge_nudge.errors import NonFiniteScoresError

Scores = NDArray[np.float32]

STREAMS = {Role.BASE: 0, Role.NUDGING: 1, None: 2}  # of random numbers: one for each who draws

# exp of the best score keeps its full precision and a million such terms do not overflow float32
_NO_SHIFT = (-60.0, 60.0)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a model thinks at one place. Entropy is in nats; the extras are NaN unless asked for.

    `drawn` is the token that sampling takes here, -1 where nobody asked; `other_prob` is the other model's top-1
    probability at the same place, NaN where it was not asked or has no opinion.
    """

    top_id: int
    top_prob: float
    second_prob: float = math.nan
    entropy: float = math.nan
    drawn: int = -1
    drawn_prob: float = math.nan
    other_prob: float = math.nan

    @property
    def candidate(self) -> int:
        """The token that the model would write here: the one drawn where the rule is about it, else the top one."""
        return self.top_id if self.drawn < 0 else self.drawn


class Reader:
    """Reads rows of one model; keeps one scratch row so that nothing of vocabulary size is allocated per token."""

    def __init__(self, n_vocab: int, model: str) -> None:
        self._scratch: Scores = np.empty(n_vocab, dtype=np.float32)
        self._model = model

    def probe(self, scores: Scores, *, with_second: bool = False, with_entropy: bool = False) -> Probe:
        """Return the top token and its probability in two passes over the row. Raises NonFiniteScoresError."""
        top = self.top(scores)
        shift = self._shift(scores, top)
        weights = self._weights(scores, shift)
        total = float(weights.sum())
        top_weight = float(weights[top])
        second = entropy = math.nan
        if with_entropy:
            # scores of minus infinity have weight 0 and add nothing
            shifted = np.maximum(scores - np.float32(shift), np.float32(-1e4))
            entropy = math.log(total) - float(np.dot(weights, shifted)) / total
        if with_second:
            weights[top] = 0.0
            second = float(weights.max()) / total
        return Probe(top, top_weight / total, second, entropy)

    def weights(self, scores: Scores) -> tuple[Scores, float]:
        """Return the softmax before it is divided by its sum, and the sum. Raises NonFiniteScoresError.

        The row is this reader's own: valid until it reads the next one.
        """
        weights = self._weights(scores, self._shift(scores, self.top(scores)))
        return weights, float(weights.sum())

    def prob_of(self, scores: Scores, tokens: Iterable[int]) -> float:
        """Return the probability of several tokens together. Raises NonFiniteScoresError."""
        weights, total = self.weights(scores)
        return sum(float(weights[token]) for token in tokens) / total

    def log_total(self, scores: Scores) -> float:
        """Return what to take off a score to get the log of its probability. Raises NonFiniteScoresError."""
        shift = self._shift(scores, self.top(scores))
        return shift + math.log(float(self._weights(scores, shift).sum()))

    def top(self, scores: Scores) -> int:
        """Return the token with the highest score, the lowest id on a tie. Raises NonFiniteScoresError."""
        top = int(scores.argmax())  # answers the place of a NaN if there is one
        if not math.isfinite(scores[top]):
            raise NonFiniteScoresError(
                f"the {self._model} model produced non-finite scores (token {top}: {scores[top]}); "
                f"its file may be damaged or its KV type or GPU backend faulty"
            )
        return top

    def _shift(self, scores: Scores, top: int) -> float:
        """Return what is taken off every score before exp: nothing where float32 holds the row as it is.

        Each pass over 262,144 scores costs as much as a tenth of what the rest of the loop does per token.
        """
        best = float(scores[top])
        return 0.0 if _NO_SHIFT[0] < best < _NO_SHIFT[1] else best

    def _weights(self, scores: Scores, shift: float) -> Scores:
        if shift == 0.0:
            return np.exp(scores, out=self._scratch)
        np.subtract(scores, np.float32(shift), out=self._scratch)
        return np.exp(self._scratch, out=self._scratch)


class Sampler:
    """Draws tokens for one model, or what both may write (role None)."""

    def __init__(self, params: SamplingParams, role: Role | None, seed: int) -> None:
        self._params = params
        self._key = np.array([seed, STREAMS[role]], dtype=np.uint64)

    @property
    def is_greedy(self) -> bool:
        return self._params.temp == 0.0

    def draw(self, scores: Scores, reader: Reader, position: int, banned: Sequence[int] = ()) -> int:
        """Return the token drawn after `position` tokens of context; `banned` tokens cannot be drawn.

        Raises NonFiniteScoresError.
        """
        top = reader.top(scores)
        if banned:
            scores = scores.copy()
            scores[list(banned)] = -np.inf
            top = reader.top(scores)
        return self.pick(scores, top, position)

    def pick(self, scores: NDArray[np.floating[Any]], top: int, position: int) -> int:
        """Return the index drawn from a row of logs, up to a constant, whose best one is `top`."""
        if self.is_greedy:
            return top
        ids, probs = self._survivors(scores, top)
        if len(ids) == 1:
            return int(ids[0])
        return int(ids[min(int(np.searchsorted(np.cumsum(probs), self._uniform(position))), len(ids) - 1)])

    def _survivors(self, scores: NDArray[np.floating[Any]], top: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Apply top-k, top-p and min-p in this order to the plain softmax, then the temperature."""
        params = self._params
        cuts_to_k = 0 < params.top_k < len(scores)
        if cuts_to_k:
            ids = np.argpartition(scores, -params.top_k)[-params.top_k :]
        elif params.min_p > 0.0:
            ids = np.flatnonzero(scores >= scores[top] + math.log(params.min_p))
        else:
            ids = np.arange(len(scores))
        ids = ids[np.lexsort((ids, -scores[ids]))]
        logs = scores[ids].astype(np.float64) - float(scores[top])
        n_keep = len(ids)
        if params.top_p < 1.0:
            # without top-k the sum runs over the whole row, so that a share is a share of everything
            weights = np.exp(logs)
            everything = weights.sum() if cuts_to_k else np.exp(scores.astype(np.float64) - scores[top]).sum()
            n_keep = int(np.searchsorted(np.cumsum(weights), params.top_p * everything)) + 1
        if params.min_p > 0.0:
            n_keep = min(n_keep, int(np.searchsorted(-logs, -math.log(params.min_p), side="right")))
        logs = logs[: max(n_keep, 1)] / params.temp
        probs = np.exp(logs)
        return ids[: len(probs)], probs / probs.sum()

    def _uniform(self, position: int) -> float:
        counter = np.array([position, 0, 0, 0], dtype=np.uint64)
        return float(np.random.Generator(np.random.Philox(key=self._key, counter=counter)).random())
