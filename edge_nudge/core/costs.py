"""What batches cost a model on one machine: the measured curve that the schedule decides by.

Owns the figures and what lies between them. Pure: engine/costs.py measures, the runtime keeps the curve from one
run to the next.

1. A batch costs by its tokens and by its rows of scores; a step is one token with one row.
2. Between two measured sizes the cost is a straight line, beyond the largest one the last line goes on.
3. `exact` is the largest size up to which every batch has the bits of single steps: there a draft changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Seconds of one batch, medians."""

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
    exact: int  # tokens; 1 where no batch is bit-equal to single steps

    @property
    def step_s(self) -> float:
        """Seconds of a step: one token, one row of scores."""
        return self.costs[0].last_s

    def batch_s(self, n_tokens: int, n_rows: int = 1) -> float:
        """Return the seconds of a batch of `n_tokens` with scores for `n_rows` of them, at least one."""
        last, every = _between(self.costs, n_tokens)
        return last if n_tokens == 1 else last + (every - last) * (n_rows - 1) / (n_tokens - 1)


def _between(costs: Sequence[BatchCost], n_tokens: int) -> tuple[float, float]:
    """Return both costs of a size, on the line between its neighbours."""
    if len(costs) == 1:
        return costs[0].last_s * n_tokens, costs[0].every_s * n_tokens
    pairs = list(pairwise(costs))
    low, high = next((pair for pair in pairs if n_tokens <= pair[1].n_tokens), pairs[-1])
    share = (n_tokens - low.n_tokens) / (high.n_tokens - low.n_tokens)
    return low.last_s + (high.last_s - low.last_s) * share, low.every_s + (high.every_s - low.every_s) * share
