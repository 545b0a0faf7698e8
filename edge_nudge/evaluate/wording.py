"""How figures of an evaluation are written: one way in sentences, tables and on the page.

Owns units and digits. Never computes a figure.
"""

from __future__ import annotations

from edge_nudge.evaluate.summary import Comparison, Cost, Estimate

MINUS, DASH, NOTHING = "\u2212", "\u2013", "\u2013"
N_ENDINGS = 10  # as many as an answer can have


def share(value: float | None, n_digits: int = 1) -> str:
    """Write a score or a ratio in per cent."""
    return NOTHING if value is None else f"{value * 100:.{n_digits}f} %"


def points(value: float) -> str:
    """Write a difference of scores in percentage points, with its sign."""
    digits = f"{abs(value) * 100:.1f}"
    return digits if float(digits) == 0 else f"{MINUS if value < 0 else '+'}{digits}"


def number(value: float | None, n_digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:,.{n_digits}f}"


def p_value(p: float) -> str:
    """Write a p-value with its sign of relation; no more digits than resampling has."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def score_range(score: Estimate | None) -> str:
    """Write the interval of a mean score, in per cent without the sign."""
    return "" if score is None else f"{score.low * 100:.1f}{DASH}{score.high * 100:.1f}"


def difference_range(comparison: Comparison) -> str:
    return f"{points(comparison.low)} to {points(comparison.high)}"


def detectable(comparison: Comparison) -> str:
    """Write about how large a true difference must be to be found."""
    return "none" if comparison.detectable > 1 else f"{comparison.detectable * 100:.0f} points"


def endings(cost: Cost) -> list[tuple[str, int]]:
    """Return what ended the answers and how often, the most frequent first; rare ones together where there are many."""
    found = list(cost.finish.items())
    n_rest = sum(n for _, n in found[N_ENDINGS:])
    return found[:N_ENDINGS] + [("others", n_rest)] * bool(n_rest)
