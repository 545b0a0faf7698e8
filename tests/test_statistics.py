"""The statistics of an evaluation: known values, brute force on tiny inputs, and coverage on simulated scores."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_nudge.errors import InputError
from edge_nudge.evaluate import statistics
from edge_nudge.evaluate.statistics import (
    Interval,
    detectable_difference,
    difference_interval,
    holm,
    mcnemar,
    mean_of_means,
    n_least,
    paired_test,
    score_interval,
    unseen_share,
)

# --- means and intervals


def test_a_mean_of_means_weighs_groups_alike() -> None:
    assert mean_of_means([[1, 1, 1, 1], [0, 1]]) == 0.75
    assert mean_of_means([[0.1] * 10]) == 0.1


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_a_mean_of_nothing_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one score"):
        mean_of_means(groups)


def binomial_percentiles(n: int, share: float) -> tuple[float, float]:
    """Where a resampled mean of 0/1 scores lies in 95 % of all draws: exact, because it is binomial."""
    below, found = 0.0, []
    for k in range(n + 1):
        chance = math.comb(n, k) * share**k * (1 - share) ** (n - k)
        if below < 0.025 <= below + chance or below < 0.975 <= below + chance:
            found.append(k / n)
        below += chance
    low, high = found
    return low, high


@pytest.mark.parametrize(("n", "n_right"), [(40, 20), (100, 50), (200, 100)])
def test_an_interval_of_symmetric_scores_is_that_of_the_exact_bootstrap(n: int, n_right: int) -> None:
    interval = score_interval([[1.0] * n_right + [0.0] * (n - n_right)])
    low, high = binomial_percentiles(n, n_right / n)
    assert interval.low == pytest.approx(low, abs=1.01 / n)
    assert interval.high == pytest.approx(high, abs=1.01 / n)


def test_equal_scores_have_an_interval_with_the_width_that_n_leaves_open() -> None:
    # Clopper and Pearson's interval of 20 of 20 begins at 0.025 to the power of 1/20
    assert score_interval([[1.0] * 20]) == Interval(pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert score_interval([[0.0] * 20]) == Interval(0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert score_interval([[1.0]]) == Interval(pytest.approx(0.025), 1.0)
    half = score_interval([[0.5] * 20])
    assert (half.low + half.high) / 2 == pytest.approx(0.5)
    same = difference_interval([[0.0] * 50])
    assert same.high == -same.low == pytest.approx(unseen_share(50))


def test_equal_scores_of_a_group_widen_the_interval_of_all() -> None:
    mixed = [0.0, 1.0] * 20
    narrow = score_interval([mixed])
    together = score_interval([mixed, [1.0] * 10])
    # the distances add as squares: half the mixed group's, and half of what ten equal scores leave open
    expected = math.hypot((0.5 - narrow.low) / 2, unseen_share(10) / 2)
    assert 0.75 - together.low == pytest.approx(expected, abs=0.01)
    assert together.high == pytest.approx(0.75 + (narrow.high - 0.5) / 2, abs=0.01)


def test_items_are_drawn_within_their_task() -> None:
    """Tasks of very different difficulty: drawn from all items together, the interval would be much wider."""
    hard, easy = [0.0] * 49 + [1.0], [1.0] * 49 + [0.0]
    within = score_interval([hard, easy])
    together = score_interval([hard + easy])
    assert within.high - within.low < 0.4 * (together.high - together.low)


def test_scores_that_differ_by_nothing_to_speak_of_are_equal() -> None:
    assert score_interval([[0.0, 5e-324, 0.0]]).high == pytest.approx(unseen_share(3))


scores = st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(scores, min_size=1, max_size=3))
def test_any_scores_have_an_interval_around_their_mean_and_the_same_one_each_time(groups: list[list[float]]) -> None:
    interval = score_interval(groups)
    assert 0 <= interval.low <= interval.high <= 1
    assert interval.low - 1e-9 <= mean_of_means(groups) <= interval.high + 1e-9
    assert score_interval(groups) == interval


def covered(kind: str, n: int, n_runs: int = 300) -> float:
    """How often the interval has the true mean in it."""
    numbers = np.random.default_rng(11)
    n_covered = 0
    for _ in range(n_runs):
        if kind == "rare":
            groups, true = [(numbers.random(n) < 0.1).astype(float).tolist()], 0.1
        elif kind == "skewed":
            groups, true = [numbers.beta(0.2, 0.8, size=n).tolist()], 0.2
        else:
            parts = [(numbers.random(n) < share).astype(float).tolist() for share in (0.2, 0.9)]
            groups, true = parts, 0.55
        interval = score_interval(groups)
        n_covered += interval.low - 1e-12 <= true <= interval.high + 1e-12
    return n_covered / n_runs


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "n"), [("rare", 20), ("rare", 100), ("skewed", 40), ("tasks", 40)])
def test_intervals_cover_the_true_mean_as_often_as_they_say(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "N_RESAMPLES", 999)
    assert 0.91 <= covered(kind, n) <= 1.0


@pytest.mark.thorough
def test_an_interval_of_paired_differences_covers_the_true_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "N_RESAMPLES", 999)
    numbers = np.random.default_rng(12)
    n_covered = 0
    for _ in range(300):
        differences = numbers.choice([-1.0, 0.0, 1.0], p=[0.05, 0.75, 0.2], size=60).tolist()
        interval = difference_interval([differences])
        n_covered += interval.low - 1e-12 <= 0.15 <= interval.high + 1e-12
    assert 0.91 <= n_covered / 300 <= 0.985


# --- tests of differences


def all_sign_flips(groups: Sequence[Sequence[float]]) -> float:
    """The share of all sign flips whose mean of means is at least as far on its own side, doubled."""
    values = [difference / len(group) for group in groups for difference in group]
    seen = sum(values)
    sums = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    above = sum(total >= seen - 1e-12 for total in sums) / len(sums)
    below = sum(total <= seen + 1e-12 for total in sums) / len(sums)
    return min(1.0, 2 * min(above, below))


def test_mcnemar_has_the_values_of_the_tables() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(6, 0) == mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(9, 3) == pytest.approx(0.146, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(differences=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=9))
def test_mcnemar_is_the_exact_sign_flip_test_of_whole_scores(differences: list[float]) -> None:
    found = paired_test([differences])
    assert found.name == "exact McNemar"
    assert found.p == pytest.approx(all_sign_flips([differences]))


fractions = st.lists(st.sampled_from([-0.75, -0.25, 0.0, 0.25, 0.5]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(fractions, min_size=1, max_size=2))
def test_sign_flips_are_those_of_brute_force(groups: list[list[float]]) -> None:
    found = paired_test(groups)
    if found.name != "exact McNemar":
        assert found.name == "exact sign flips"
    assert found.p == pytest.approx(all_sign_flips(groups))


def test_many_differences_are_flipped_at_random_and_the_same_way_each_time() -> None:
    numbers = np.random.default_rng(3)
    differences = numbers.normal(0.08, 0.25, size=60).clip(-1, 1).tolist()
    found = paired_test([differences])
    assert found.name == "random sign flips"
    assert found == paired_test([differences])
    z = sum(differences) / math.sqrt(sum(d * d for d in differences))
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert paired_test([[0.3] * 200]).p <= 0.001


@pytest.mark.thorough
def test_a_test_of_equal_systems_finds_something_no_oftener_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "N_RESAMPLES", 999)
    numbers = np.random.default_rng(4)
    n_found = 0
    for _ in range(300):
        whole = numbers.choice([-1.0, 0.0, 1.0], p=[0.2, 0.6, 0.2], size=40)
        part = numbers.uniform(-0.5, 0.5, size=40)
        n_found += paired_test([whole.tolist(), part.tolist()]).p < 0.05
    assert n_found / 300 < 0.085


def test_holm_has_the_values_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_each_p_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) or math.isclose(q, p)
    for (p, q), (other_p, other_q) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert q <= other_q if p < other_p else q >= other_q if p > other_p else q == other_q


# --- what would be missed


def test_six_items_must_differ_before_anything_can_be_found() -> None:
    assert n_least() == 6
    assert mcnemar(5, 0) > 0.05 >= mcnemar(6, 0)
    assert n_least(0.05 / 10) == 9
    assert detectable_difference([[1.0] * 3]) > 1, "three items cannot show anything"
    assert detectable_difference([[0.25, 0.5]]) > 1
    assert detectable_difference([[0.0] * 100]) == pytest.approx(0.06)


def test_more_comparisons_need_larger_differences() -> None:
    differences = [[1.0, -1.0, 0.0, 0.0] * 20]
    assert detectable_difference(differences, 0.05 / 12) > 1.2 * detectable_difference(differences)


@pytest.mark.thorough
def test_a_difference_that_is_called_detectable_is_found_in_four_of_five_evaluations() -> None:
    numbers = np.random.default_rng(8)
    n, share = 150, 0.4  # of items that only one system has right

    def draw(difference: float) -> list[float]:
        chances = [(share - difference) / 2, 1 - share, (share + difference) / 2]
        return numbers.choice([-1.0, 0.0, 1.0], p=chances, size=n).tolist()

    true = detectable_difference([draw(0.0)])
    n_found = sum(paired_test([draw(true)]).p < 0.05 for _ in range(300))
    assert 0.68 <= n_found / 300 <= 0.9  # the exact test is a little stricter than the approximation


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match=r"need scipy, which is not installed: pip install 'edge-nudge\[eval\]'"):
        score_interval([[0.0, 1.0]])
