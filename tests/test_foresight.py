"""Guesses: where they come from, what they cost, when they pay, and that they can only save calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import straight_curve

from edge_nudge.core.foresight import Foresight
from edge_nudge.core.lookup import MAX_MATCH, NOTHING, Lookup
from edge_nudge.core.schedule import DRAFTED, Odds, Schedule

IDS = st.lists(st.integers(0, 3), max_size=30)


def lookup(*ids: int) -> Lookup:
    found = Lookup()
    found.follow(ids)
    return found


# --- lookup


def test_the_longest_match_wins_and_of_those_the_most_recent() -> None:
    assert list(lookup(1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3).find((), 1).tokens) == [7]  # three tokens against two
    assert list(lookup(2, 3, 7, 2, 3, 8, 2, 3).find((), 1).tokens) == [8]
    assert lookup(1, 2, 3).find((), 4) == NOTHING
    assert lookup().find((), 4) == NOTHING


def test_a_text_that_repeats_itself_goes_on_in_circles() -> None:
    found = lookup(1, 2, 3, 1, 2, 3).find((), 7)
    assert (list(found.tokens), found.n_match) == ([1, 2, 3, 1, 2, 3, 1], 3)
    assert lookup(*[1, 2] * 10).find((), 3).n_match == MAX_MATCH


def test_what_is_drafted_behind_the_text_counts_as_its_end() -> None:
    assert list(lookup(1, 2, 3, 4, 5, 1).find((2, 3), 2).tokens) == [4, 5]
    assert list(lookup(1, 2, 3, 1).find((2,), 4).tokens) == [3, 1, 2, 3]


@given(IDS, IDS, st.lists(st.integers(0, 3), max_size=3), st.integers(1, 9))
def test_what_is_found_really_followed_a_match(first: list[int], second: list[int], tail: list[int], n: int) -> None:
    """Also behind a text that was cut and went on otherwise."""
    index = lookup(*first)
    index.follow(second)
    found = index.find(tail, n)
    whole = [*second, *tail]
    if found is NOTHING:
        assert not whole or whole[-1] not in second[:-1] or tail or stale(first, second)
        return
    assert len(found.tokens) == n
    assert any(
        whole[place - k : place] == whole[-k:] and follows(whole, place, found.tokens)
        for place in range(1, len(second))
        for k in [min(found.n_match, place)]
        if k == found.n_match
    )


def follows(whole: list[int], place: int, tokens: object) -> bool:
    """Tell whether the tokens stand at a place of the text, which goes on in circles from there."""
    circle = whole[place:]
    return all(token == circle[i % len(circle)] for i, token in enumerate(tokens))  # type: ignore[call-overload]


def stale(first: list[int], second: list[int]) -> bool:
    """Tell whether the index had entries of a text that was cut: they may hide older ones."""
    return first[: len(second)] != second[: len(first)] or len(first) > len(second)


@given(IDS, IDS)
def test_following_is_the_same_as_pushing(first: list[int], second: list[int]) -> None:
    pushed = lookup(*first)
    for token in second:
        pushed.push(token)
    followed = lookup(*first)
    followed.follow([*first, *second])
    assert pushed.find((), 5) == followed.find((), 5)


# --- schedule


def test_a_guess_pays_where_it_saves_more_than_it_costs() -> None:
    schedule = Schedule(straight_curve(0.1, 0.2))  # a guess costs 0.3 steps
    assert schedule.n_ahead(1, [0.29])[0] == 0
    assert schedule.n_ahead(1, [0.35])[0] == 1
    assert schedule.n_ahead(1, [0.9, 0.9, 0.3])[0] == 2
    assert schedule.n_ahead(1, [0.9] * 40)[0] == 11  # 0.9 ** 11 is 0.31, just above the cost


def test_batches_stay_within_the_sizes_that_are_exact() -> None:
    free = straight_curve(0.0, 0.0, exact=4)
    assert [Schedule(free).n_ahead(n_text, [1.0] * 9)[0] for n_text in (1, 3, 4, 5, 30)] == [3, 1, 0, 0, 0]
    nothing_is_exact = straight_curve(0.0, 0.0, exact=1)
    assert Schedule(nothing_is_exact).n_ahead(1, [1.0] * 40)[0] == 15  # the largest measured size
    assert Schedule(straight_curve(0.0, 0.0, sizes=(1,))).n_ahead(1, [1.0] * 9)[0] == 0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 16), st.lists(st.floats(0, 1), max_size=16), st.integers(1, 16))
def test_the_number_is_the_best_one(
    per_token: float, per_row: float, n_text: int, chances: list[float], exact: int
) -> None:
    curve = straight_curve(per_token, per_row, exact=exact)
    schedule = Schedule(curve)

    def gain(n_guesses: int) -> float:
        saved, chance = 0.0, 1.0
        for p in chances[:n_guesses]:
            chance *= p
            saved += chance
        return saved - (curve.batch_s(n_text + n_guesses, n_guesses + 1) - curve.batch_s(n_text))

    n_best, best_gain = schedule.n_ahead(n_text, chances)
    room = range(min(len(chances), schedule.largest - n_text) + 1) if n_text <= schedule.largest else range(1)
    assert n_best in room
    assert gain(n_best) == pytest.approx(max(map(gain, room)), abs=0.021)
    assert best_gain == pytest.approx(gain(n_best))


def test_odds_follow_what_they_see() -> None:
    odds = Odds()
    before = odds.of(3)
    odds.note(3, True)
    assert odds.of(3) > before
    for _ in range(100):
        odds.note(3, False)
    assert odds.of(3) < 0.05
    assert odds.of(4) == Odds().of(4)


# --- foresight


def test_what_the_other_model_has_drafted_comes_first_and_the_text_goes_on_from_there() -> None:
    foresight = Foresight(Schedule(straight_curve(0.0, 0.0)))
    foresight.follow([1, 2, 3, 4, 5, 6, 1], drafted=[2, 3])
    assert foresight.guess(1)[:4] == [2, 3, 4, 5]


def test_odds_learn_from_each_guess_whose_predecessors_were_right() -> None:
    foresight = Foresight(Schedule(straight_curve(0.0, 0.0, exact=4)))
    foresight.follow([1, 2, 3, 1], drafted=[2])
    assert foresight.guess(1) == [2, 3, 1]
    before = Odds()
    foresight.push(2)  # right
    foresight.follow([1, 2, 3, 1, 2, 9, 1])  # wrong; nothing is known of the third one
    odds = foresight._odds
    assert odds.of(DRAFTED) > before.of(DRAFTED)
    assert odds.of(2) < before.of(2)
    assert odds.of(3) == before.of(3)


def test_a_limit_on_guesses_holds() -> None:
    foresight = Foresight(Schedule(straight_curve(0.0, 0.0)), most=1)
    foresight.follow([1, 2, 3, 1], drafted=[2, 3])
    assert foresight.guess(1) == [2]


def test_the_other_model_is_let_write_where_that_pays_and_learns_by_itself() -> None:
    asked: list[int] = []

    def scout(n_tokens: int) -> list[int]:
        asked.append(n_tokens)
        return [7] * n_tokens

    dear = Foresight(Schedule(straight_curve(0.1, 0.1)), scout_step=0.5)
    dear.follow([1, 2, 3])
    assert dear.guess(1, scout) == []
    assert asked == []
    cheap = Foresight(Schedule(straight_curve(0.02, 0.02)), scout_step=0.05)
    cheap.follow([1, 2, 3])
    assert cheap.guess(1, scout)[:2] == [7, 7]
    before = cheap._odds.of(DRAFTED)
    for token in range(20, 60):  # never right
        cheap.push(token)
        cheap.guess(1, scout)
    n_asked = len(asked)
    cheap.push(60)
    assert cheap.guess(1, scout) == []
    assert len(asked) == n_asked < 40
    assert cheap._odds.of(DRAFTED) == before
