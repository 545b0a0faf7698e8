"""What the same answer would take by the measured batch costs: how much time the schedule leaves lying about.

Owns two bounds. Never measures: counts come from the answer, seconds from the curves of the models.

1. Both are of the writing: reading the prompt is taken off, on both sides.
2. Without foresight: each time a model's scores are needed is one call with one row, which brings everything that is
   new; no token is evaluated twice and none in vain. What a schedule without guesses can reach at best.
3. Foreseen: every token is guessed right, in batches of the size that is cheapest for each token. No schedule
   can be faster; none can know so much.
4. A curve is measured behind 64 tokens of context; behind a long text all calls are slower, and both bounds too low.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_nudge.core.costs import CostCurve
from edge_nudge.core.events import Cause, ModelUsage, Role, Usage

Curves = Mapping[Role, CostCurve]


def over_best(usage: Usage, curves: Curves) -> float | None:
    """Return by how much of the best time without foresight the writing took longer; below 0 where guesses won it."""
    return _over(usage, sum(_one_by_one_s(usage.of(role), curve) for role, curve in curves.items()))


def over_foreseen(usage: Usage, curves: Curves) -> float | None:
    """Return by how much of the time with perfect foresight the writing took longer."""
    return _over(usage, sum(_foreseen_s(usage.of(role), curve) for role, curve in curves.items()))


def _over(usage: Usage, best_s: float) -> float | None:
    writing_s = usage.total_s - usage.base.prompt_s - usage.nudging.prompt_s
    return writing_s / best_s - 1 if best_s > 0 else None


def _needed(usage: ModelUsage) -> int:
    """Return how many tokens behind the prompt had to be evaluated, each once."""
    return usage.evaluated[Cause.OWN] + usage.evaluated[Cause.CATCH_UP] + usage.evaluated[Cause.VERIFIED]


def _one_by_one_s(usage: ModelUsage, curve: CostCurve) -> float:
    n_asked = usage.n_asked - 1  # the first time is the prompt's
    if n_asked <= 0:
        return 0.0
    return n_asked * curve.batch_s(max(1.0, _needed(usage) / n_asked))


def _foreseen_s(usage: ModelUsage, curve: CostCurve) -> float:
    sizes = range(1, curve.costs[-1].n_tokens + 1)
    return _needed(usage) * min(curve.batch_s(size, size) / size for size in sizes)
