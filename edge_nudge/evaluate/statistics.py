"""What a list of scores can tell: means with intervals, differences of pairs with tests, and what would be missed.

Owns the arithmetic. Never knows what a system or a task is, and reads no file.

1. Scores come in groups, one for each task; the estimate is the mean of the groups' means, and items are resampled
   within their group. One group is a plain mean.
2. The same scores give the same figures: every draw starts from the same seed.
3. Intervals are BCa bootstrap intervals. Beside percentiles they cover better where few scores are skewed (of 20
   skewed scores 94 % against 91 %) and the same elsewhere.
4. Resampling equal scores says nothing, and an interval without width would claim too much: there the interval allows
   for the share of other scores that n such draws do not exclude (Clopper and Pearson's bound for 0 of n).
5. Such groups and resampled ones are put together by their distances from the estimate, squared and added (the
   "method of variance estimates recovery", Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_nudge.errors import InputError

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
N_RESAMPLES = 9_999
SEED = 20_240_131
_SAME = 1e-9  # scores that differ by less are equal: the bootstrap would divide by their spread
_MAX_VALUES = 1 << 21  # drawn at a time: bounds the memory, 16 MiB

Groups: TypeAlias = Sequence[Sequence[float]]
TestName: TypeAlias = Literal["exact McNemar", "exact sign flips", "random sign flips"]


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Test:
    """A two-sided p-value and what it is of."""

    p: float
    name: TestName


def mean_of_means(groups: Groups) -> float:
    """Return the mean of the groups' means. Raises ValueError where a group is empty."""
    if not groups or not all(groups):
        raise ValueError("a mean needs at least one score in each group")
    return math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups)


def score_interval(groups: Groups) -> Interval:
    """Return where the mean of scores between 0 and 1 may lie."""
    return _interval(groups, 0.0, 1.0)


def difference_interval(groups: Groups) -> Interval:
    """Return where the mean of differences of such scores may lie, item by item of two systems."""
    return _interval(groups, -1.0, 1.0)


def _interval(groups: Groups, least: float, most: float) -> Interval:
    """Return the interval around the mean of means, within what scores can be."""
    estimate = mean_of_means(groups)
    varying = [np.asarray(group, dtype=np.float64) for group in groups if not _is_equal(group)]
    below, above = [], []  # distances of the ends from the estimate
    if varying:
        share = len(varying) / len(groups)
        center = mean_of_means([group.tolist() for group in varying])
        drawn = _bootstrap(varying)
        below.append(share * (center - drawn.low))
        above.append(share * (drawn.high - center))
    for group in groups:
        if _is_equal(group):
            unseen = unseen_share(len(group)) / len(groups)
            below.append(unseen * (group[0] - least))
            above.append(unseen * (most - group[0]))
    return Interval(max(least, estimate - math.hypot(*below)), min(most, estimate + math.hypot(*above)))


def _is_equal(group: Sequence[float]) -> bool:
    return max(group) - min(group) < _SAME


def unseen_share(n: int) -> float:
    """Return how frequent something may be that n draws did not show: the upper end for 0 of n."""
    return 1.0 - float(((1 - CONFIDENCE) / 2) ** (1 / n))


def _bootstrap(groups: Sequence[NDArray[np.float64]]) -> Interval:
    stats = scipy_stats()

    def mean(*parts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = sum(part.mean(axis=axis) for part in parts) / np.float64(len(parts))
        return found

    found = stats.bootstrap(
        groups,
        mean,
        method="BCa",
        confidence_level=CONFIDENCE,
        n_resamples=N_RESAMPLES,
        batch=max(1, _MAX_VALUES // max(len(group) for group in groups)),
        vectorized=True,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


# --- two systems on the same items


def paired_test(groups: Groups) -> Test:
    """Test whether differences could be chance: exact McNemar for 0/1 scores of one group, else sign flips.

    Sign flips are of the mean of means: each difference counts by the size of its group. All of them are looked at
    where there are no more than N_RESAMPLES.
    """
    mean_of_means(groups)
    if len(groups) == 1 and all(difference in (-1, 0, 1) for difference in groups[0]):
        return Test(mcnemar(sum(d > 0 for d in groups[0]), sum(d < 0 for d in groups[0])), "exact McNemar")
    values = np.array([d / len(group) for group in groups for d in group if d != 0])
    is_exact = len(values) <= math.log2(N_RESAMPLES)
    name: TestName = "exact sign flips" if is_exact else "random sign flips"
    if len(values) < 2:  # both signs are as likely
        return Test(1.0, name)
    found = scipy_stats().permutation_test(
        (values,),
        lambda drawn, axis: drawn.sum(axis=axis),
        permutation_type="samples",
        alternative="two-sided",
        n_resamples=N_RESAMPLES,
        batch=max(1, _MAX_VALUES // len(values)),
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return Test(min(1.0, float(found.pvalue)), name)


def mcnemar(n_first: int, n_second: int) -> float:
    """Return the exact two-sided p-value of items that only one system has right: so many the first, the second."""
    if n_first + n_second == 0:
        return 1.0
    return float(scipy_stats().binomtest(n_first, n_first + n_second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values of comparisons that are shown together, by Holm's steps; the order stays."""
    adjusted = [1.0] * len(p_values)
    reached = 0.0
    for i, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - i) * p_values[n]))
        adjusted[n] = reached
    return tuple(adjusted)


# --- what would be missed


def detectable_difference(groups: Groups, alpha: float = ALPHA) -> float:
    """Return about how large a true difference must be to be found in four of five such evaluations.

    From how often and how far the two systems differ here, by the normal approximation; never below what the best
    case needs, see `n_least`. Above 1 nothing could be found.
    """
    mean_of_means(groups)
    variance = math.fsum(math.fsum(d * d for d in group) / len(group) ** 2 for group in groups) / len(groups) ** 2
    normal = NormalDist()
    usual = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * math.sqrt(variance)
    n_items = sum(map(len, groups))
    is_whole = all(d in (-1, 0, 1) for group in groups for d in group)
    best = n_least(alpha) / n_items
    return max(usual, best) if is_whole or best > 1 else usual


def n_least(alpha: float = ALPHA) -> int:
    """Return how many items must differ, all in one direction, before a paired test can find anything: 6 for 5 %."""
    return next(n for n in count(1) if 2 * 0.5**n <= alpha)


def scipy_stats() -> Any:
    """Import scipy.stats, which takes half a second. Raises InputError where it is not installed."""
    try:
        import scipy.stats
    except ImportError:
        raise InputError(
            "the statistics of an evaluation need scipy, which is not installed: pip install 'edge-nudge[eval]'"
        ) from None
    return scipy.stats
