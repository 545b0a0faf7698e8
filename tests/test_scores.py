"""Probes, samplers and rules against plain float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge_nudge.core.events import Role
from edge_nudge.core.policy import Entropy, Margin, Solo, TopProb, make_policy
from edge_nudge.core.request import NudgeParams, Rule, SamplingParams
from edge_nudge.core.sampling import Probe, Reader, Sampler
from edge_nudge.errors import NonFiniteScoresError

ROWS = npst.arrays(np.float32, st.integers(2, 40), elements=st.floats(-30, 30, width=32))


def softmax(row: np.ndarray) -> np.ndarray:
    exact = np.exp(row.astype(np.float64) - row.max())
    return exact / exact.sum()


@given(ROWS)
def test_a_probe_is_the_plain_softmax(row: np.ndarray) -> None:
    before = row.copy()
    probe = Reader(len(row), "base").probe(row, with_second=True, with_entropy=True)
    probs = softmax(row)
    assert probe.top_id == int(row.argmax())
    assert probe.top_prob == pytest.approx(probs.max(), rel=1e-5)
    assert probe.second_prob == pytest.approx(np.sort(probs)[-2], rel=1e-4, abs=1e-9)
    assert probe.entropy == pytest.approx(-(probs * np.log(np.maximum(probs, 1e-300))).sum(), rel=1e-4, abs=1e-4)
    np.testing.assert_array_equal(row, before)


def test_tokens_ruled_out_by_minus_infinity_are_fine() -> None:
    row = np.array([0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    probe = Reader(4, "base").probe(row, with_second=True, with_entropy=True)
    assert probe == Probe(0, 0.5, 0.5, pytest.approx(math.log(2), rel=1e-6))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("places", [[3], [0], slice(None)])
def test_non_finite_scores_are_refused(bad: float, places: object) -> None:
    row = np.linspace(-1, 1, 8, dtype=np.float32)
    row[places] = bad  # type: ignore[index]
    reader = Reader(8, "nudging")
    with pytest.raises(NonFiniteScoresError, match="nudging model"):
        reader.probe(row)
    with pytest.raises(NonFiniteScoresError):
        Sampler(SamplingParams(), Role.BASE, 0).draw(row, reader, 0)


def test_a_row_of_minus_infinity_is_refused() -> None:
    with pytest.raises(NonFiniteScoresError):
        Reader(4, "base").probe(np.full(4, -np.inf, dtype=np.float32))


@given(ROWS)
def test_the_probability_of_several_tokens(row: np.ndarray) -> None:
    assert Reader(len(row), "x").prob_of(row, (0, 1)) == pytest.approx(softmax(row)[:2].sum(), rel=1e-4, abs=1e-9)


# --- sampling


def naive_filter(row: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """Top-k, top-p, min-p in this order on the plain softmax, then the temperature: as written, with full sorts."""
    probs = softmax(row)
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    kept = order[: params.top_k] if params.top_k else order
    if params.top_p < 1.0:
        total = probs[kept].sum()
        mass, n_keep = 0.0, 0
        for token in kept:
            mass += probs[token] / total
            n_keep += 1
            if mass >= params.top_p:
                break
        kept = kept[:n_keep]
    kept = [i for i in kept if probs[i] >= params.min_p * probs.max()] or kept[:1]
    weights = np.exp((row[kept].astype(np.float64) - row.max()) / params.temp)
    return dict(zip(kept, weights / weights.sum(), strict=True))


@given(
    npst.arrays(np.float32, st.integers(2, 30), elements=st.floats(-6, 6, width=32), unique=True),
    st.sampled_from([0, 1, 3, 40]),
    st.sampled_from([1.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.3]),
    st.floats(0.3, 2.0),
)
def test_filters_keep_what_a_full_sort_keeps(
    row: np.ndarray, top_k: int, top_p: float, min_p: float, temp: float
) -> None:
    params = SamplingParams(temp=temp, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, probs = Sampler(params, Role.BASE, 0)._survivors(row, int(row.argmax()))
    want = naive_filter(row, params)
    # a share that meets the border to the last digit may fall on either side
    if set(ids) != set(want):
        shares = np.cumsum(np.sort(softmax(row))[::-1])
        assert np.abs(shares - top_p).min() < 1e-6 or np.abs(softmax(row) / softmax(row).max() - min_p).min() < 1e-6
    else:
        for token, prob in zip(ids, probs, strict=True):
            assert prob == pytest.approx(want[int(token)], rel=1e-6)


def test_draws_follow_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(SamplingParams(temp=1.0, top_k=0, top_p=1.0, min_p=0.0), Role.NUDGING, 42)
    reader = Reader(4, "x")
    draws = np.bincount([sampler.draw(row, reader, position) for position in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(draws, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_a_draw_depends_on_seed_role_and_position_alone() -> None:
    row = np.zeros(50, dtype=np.float32)
    params = SamplingParams(temp=1.0, top_k=0, top_p=1.0, min_p=0.0)
    reader = Reader(50, "x")

    def draws(role: Role, seed: int) -> list[int]:
        return [Sampler(params, role, seed).draw(row, reader, position) for position in range(20)]

    assert draws(Role.BASE, 1) == draws(Role.BASE, 1)
    assert draws(Role.BASE, 1) != draws(Role.NUDGING, 1)
    assert draws(Role.BASE, 1) != draws(Role.BASE, 2)
    assert len(set(draws(Role.BASE, 1))) > 5


def test_a_banned_token_is_never_drawn() -> None:
    row = np.array([5.0, 4.0, 1.0], dtype=np.float32)
    reader = Reader(3, "x")
    for temp in (0.0, 1.0):
        sampler = Sampler(SamplingParams(temp=temp), Role.BASE, 0)
        assert {sampler.draw(row, reader, position, [0]) for position in range(20)} <= {1, 2}
    assert row[0] == 5.0


def test_seeds_of_the_whole_range_are_taken() -> None:
    sampler = Sampler(SamplingParams(temp=1.0), Role.BASE, 2**64 - 1)
    assert sampler.draw(np.zeros(4, dtype=np.float32), Reader(4, "x"), 3) in range(4)


# --- rules


@pytest.mark.parametrize(
    ("policy", "probe", "is_sure"),
    [
        (TopProb(0.4), Probe(0, 0.4), True), (TopProb(0.4), Probe(0, 0.39), False),
        (TopProb(0.0), Probe(0, 0.001), True),
        (Margin(0.2), Probe(0, 0.5, 0.3), True), (Margin(0.2), Probe(0, 0.5, 0.31), False),
        (Entropy(1.0), Probe(0, 0.5, entropy=1.0), True), (Entropy(1.0), Probe(0, 0.5, entropy=1.01), False),
        (Solo(Role.BASE), Probe(0, 0.0), True), (Solo(Role.NUDGING), Probe(0, 1.0), False),
    ],
)  # fmt: skip
def test_rules(policy: TopProb, probe: Probe, is_sure: bool) -> None:
    assert policy.is_sure(probe) is is_sure


def test_each_rule_has_a_policy_that_asks_for_what_it_reads() -> None:
    for rule in Rule:
        policy = make_policy(NudgeParams(rule=rule))
        assert policy.needs_second == (rule is Rule.MARGIN)
        assert policy.needs_entropy == (rule is Rule.ENTROPY)
        assert policy.needs_drawn == (rule in (Rule.TOKEN, Rule.BET))
        assert policy.needs_other == (rule is Rule.BET)
        assert policy.is_mixed == (rule is Rule.BLEND)
        assert (policy.solo is None) == (rule not in (Rule.BASE_ONLY, Rule.NUDGING_ONLY))
