"""What batches cost a model on one machine: the measured curve that the schedule decides by.

Owns the figures and what lies between them. Pure: engine/costs.py measures, catalog/curves.py keeps the curve from
one run to the next.

1. A batch costs by its tokens and by its rows of scores, one cost added to the other; a step is one token with one row.
2. Between two measured sizes a cost is a straight line, beyond the largest one the last line goes on.
3. `exact` is the largest size up to which every batch has the bits of single steps: there a draft changes nothing.
   It holds while the cache has no more than `exact_within` tokens: behind those nothing is known.
4. A decision needs a curve that never falls: `ascending` makes one of what was measured. What is printed and kept is
   what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

# Tokens. llama.cpp's attention is much slower for smaller batches behind a long text: 1,500 tokens of SmolLM2 135M took
# 4.4 s in batches of 512, 4.7 in 128, 5.4 in 64, 14.7 in 32 (2 cores).
LEAST_PREFILL = 128


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Seconds of one batch."""

    n_tokens: int
    last_s: float  # scores for the last token only
    every_s: float  # scores for every token


@dataclass(frozen=True, slots=True)
class CostCurve:
    """What batches cost one model on this machine; `costs` ascend by tokens and begin with one token."""

    n_vocab: int
    n_context: int
    n_rounds: int
    reset_by: str  # "rewind", or "re-evaluation" where a model cannot
    costs: tuple[BatchCost, ...]
    exact: int  # tokens; 1 where no batch is bit-equal to single steps, or the model cannot rewind
    exact_within: int  # tokens in the cache, those of the batch among them

    @property
    def step_s(self) -> float:
        """Seconds of a step: one token, one row of scores."""
        return self.costs[0].last_s

    def batch_s(self, n_tokens: float, n_rows: int = 1) -> float:
        """Return the seconds of a batch of `n_tokens` with scores for `n_rows` of them, at least one.

        A number of tokens that is not whole is a mean.

        What further rows cost is read where as many tokens had all their rows: the output matrix is computed for
        rows, all the others for tokens.
        """
        last, _ = _between(self.costs, n_tokens)
        last_of_rows, every_of_rows = _between(self.costs, n_rows)
        return last if n_rows == 1 else last + every_of_rows - last_of_rows

    def prefill_batch(self, limit_s: float, n_batch: int) -> int:
        """Return the size of prompt batches that take at most `limit_s` each: LEAST_PREFILL times a power of two.

        `n_batch` is the most the model takes; where that is less it is the answer. LEAST_PREFILL is the answer too
        where even that takes longer.
        """
        size = min(LEAST_PREFILL, n_batch)
        while 2 * size <= n_batch and size >= LEAST_PREFILL and self.batch_s(2 * size) <= limit_s:
            size *= 2
        return size

    def ascending(self) -> CostCurve:
        """Return the curve to decide by: `batch_s` never falls where tokens or rows are added.

        Each cost is at least that of every smaller size. Too high a figure at a small size (a disturbed moment, or a
        kernel that is bad at 6 rows and better at 8) makes larger batches look dearer than they are, never cheaper.
        """
        first = min(self.costs[0].last_s, self.costs[0].every_s)  # the same batch, timed twice
        last, rows = first, 0.0
        costs = [BatchCost(self.costs[0].n_tokens, first, first)]
        for cost in self.costs[1:]:
            last, rows = max(last, cost.last_s), max(rows, cost.every_s - cost.last_s)
            costs.append(BatchCost(cost.n_tokens, last, last + rows))
        return replace(self, costs=tuple(costs))


def _between(costs: Sequence[BatchCost], n_tokens: float) -> tuple[float, float]:
    """Return both costs of a size, on the line between its neighbours."""
    if len(costs) == 1:
        return costs[0].last_s * n_tokens, costs[0].every_s * n_tokens
    pairs = list(pairwise(costs))
    low, high = next((pair for pair in pairs if n_tokens <= pair[1].n_tokens), pairs[-1])
    share = (n_tokens - low.n_tokens) / (high.n_tokens - low.n_tokens)
    return low.last_s + (high.last_s - low.last_s) * share, low.every_s + (high.every_s - low.every_s) * share
