"""Scores of the answer's tokens: against plain arithmetic, and the law that joined they are the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from worlds import GUESSING, World, decoded, random_world, referred, straight_curve

from edge_nudge.core.costs import CostCurve
from edge_nudge.core.draft import Draft
from edge_nudge.core.events import Cause, Event, Finished, HandoffReason, Piece, Role, TokenScore
from edge_nudge.core.prompt import Prompt
from edge_nudge.core.request import build_request
from edge_nudge.core.sampling import Reader
from edge_nudge.core.token_scores import TokenScorer, best_tokens, join_tokens, split_tokens, without_blanks
from edge_nudge.core.writer import Writer
from edge_nudge.errors import NonFiniteScoresError
from edge_nudge.testing import FakeBackend, Scorer, ToyVocabulary, hashed_scores, scripted_scores

TEXTS = st.text(alphabet=st.sampled_from(list(" \n.abé日👩\u200d🔬")), max_size=30)


def log_softmax(row: np.ndarray) -> np.ndarray:
    exact = row.astype(np.float64)
    return exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())


def pieces_of(events: Sequence[Event]) -> list[Piece]:
    return [event for event in events if isinstance(event, Piece)]


def tokens_of(events: Sequence[Event]) -> list[TokenScore]:
    return [token for piece in pieces_of(events) for token in piece.tokens]


# --- one row


@given(
    npst.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-3.0, 0.0, 0.5, 0.5001, 2.0, 80.0, -np.inf])),
    st.integers(1, 20),
)
def test_the_best_tokens_are_those_of_a_full_sort(row: np.ndarray, n: int) -> None:
    assert best_tokens(row, n) == sorted(range(len(row)), key=lambda i: (-row[i], i))[:n]


@given(
    npst.arrays(np.float32, 300, elements=st.floats(-90, 90, width=32)), st.integers(4, 299), st.sampled_from([0, 1, 5])
)
def test_a_score_is_the_plain_log_softmax(row: np.ndarray, token: int, n_top: int) -> None:
    vocabulary = ToyVocabulary(tuple(f"w{i}" for i in range(40)))
    backend = FakeBackend(vocabulary, lambda ids: row)
    before = row.copy()
    got = TokenScorer(backend, Reader(300, "base"), n_top).score(row, token)
    want = log_softmax(row)
    assert (got.data, got.id, got.is_rest) == (vocabulary.pieces[token], token, False)
    assert got.logprob == pytest.approx(want[token], abs=1e-4)
    best = sorted(range(300), key=lambda i: (-row[i], i))[:n_top]
    if n_top and token not in best:
        best.append(token)
    assert [data for data, _ in got.top] == [vocabulary.pieces[i] or backend.spelling(i).encode() for i in best]
    assert [logprob for _, logprob in got.top] == pytest.approx([want[i] for i in best], abs=1e-4)
    assert not n_top or (got.data, got.logprob) in got.top
    np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("places", [[5], slice(None)])
def test_a_row_with_non_finite_scores_has_no_token_scores(bad: float, places: object) -> None:
    row = np.zeros(260, dtype=np.float32)
    row[places] = bad  # type: ignore[index]
    scorer = TokenScorer(FakeBackend(ToyVocabulary(), lambda ids: row), Reader(260, "base"), 3)
    with pytest.raises(NonFiniteScoresError, match="base model"):
        scorer.score(row, 100)


# --- cuts


def scored(*pieces: bytes) -> list[TokenScore]:
    return [TokenScore(data, i, -1.0 - i, ((data, -1.0 - i), (b"  x", -9.0))) for i, data in enumerate(pieces)]


def test_a_token_over_a_border_has_its_rest_behind_it() -> None:
    front, behind = split_tokens(scored(b"ab", b"c d", b"e"), 3)
    assert [(t.data, t.id, t.logprob, t.is_rest) for t in front] == [(b"ab", 0, -1.0, False), (b"c", 1, -2.0, False)]
    assert [(t.data, t.id, t.logprob, t.is_rest) for t in behind] == [(b" d", 1, 0.0, True), (b"e", 2, -3.0, False)]
    assert behind[0].top == ((b" d", 0.0),)
    assert join_tokens([*front, *behind]) == [
        *scored(b"ab"), replace(scored(b"ab", b"c d")[1]), scored(b"ab", b"c d", b"e")[2]
    ]  # fmt: skip


@given(st.lists(st.binary(max_size=3), max_size=6), st.integers(0, 20))
def test_a_split_loses_nothing(pieces: list[bytes], n_bytes: int) -> None:
    tokens = scored(*pieces)
    front, behind = split_tokens(tokens, n_bytes)
    text = b"".join(pieces)
    assert b"".join(token.data for token in front) == text[:n_bytes]
    assert b"".join(token.data for token in behind) == text[n_bytes:]
    starts = [len(b"".join(pieces[:i])) for i in range(len(pieces))]
    assert len(front) == sum(start < n_bytes for start in starts)
    assert join_tokens([*front, *behind]) == tokens


def test_blanks_that_are_there_already_are_taken_off_all_alike() -> None:
    token = TokenScore(b"  a", 7, -1.0, ((b"  a", -1.0), (b" b", -2.0), (b"c", -3.0)))
    assert without_blanks(token, 1) == TokenScore(b" a", 7, -1.0, ((b" a", -1.0), (b"b", -2.0), (b"c", -3.0)))
    assert without_blanks(token, 0) is token


@given(TEXTS, st.randoms(use_true_random=False), st.integers(0, 3), st.booleans())
def test_tokens_of_a_draft_are_its_text(text: str, rng: object, overlap: int, opens_answer: bool) -> None:
    data = text.encode()
    draft = Draft(overlap, opens_answer=opens_answer)
    at = n_tokens = 0
    while at < len(data):
        piece = data[at : at + rng.randint(1, 5)]  # type: ignore[attr-defined]
        draft.push(piece, TokenScore(piece, at, -1.0))
        at += len(piece)
        while (size := draft.word_size()) is not None and rng.random() < 0.7:  # type: ignore[attr-defined]
            got, starts, tokens = draft.take(size)
            assert b"".join(token.data for token in tokens) == got
            assert len(starts) == sum(not token.is_rest for token in tokens)
            n_tokens += len(starts)
    got, starts, tokens = draft.take(draft.whole_size())
    assert b"".join(token.data for token in tokens) == got
    assert len(starts) == sum(not token.is_rest for token in tokens)


# --- whole answers


def assert_the_law(events: Sequence[Event], name: str) -> None:
    for piece in pieces_of(events):
        assert b"".join(token.data for token in piece.tokens) == piece.text.encode(), name
        assert piece.n_tokens == sum(not token.is_rest for token in piece.tokens), name
        assert all(token.logprob is not None and token.logprob <= 0.0 for token in piece.tokens), name


SETTINGS = [
    {"max_tokens": 60, "lookahead": 16},
    {"max_tokens": 60, "gamma": 0.0, "rule": "top_prob"},
    {"max_tokens": 60, "rule": "base-only"},
    {"max_tokens": 9, "gamma": 0.6, "rule": "top_prob", "lookahead": 5},
    {"max_tokens": 60, "stop": ["t s", "a", "\n"]},
    {"max_tokens": 60, "loop_guard": True, "temp": 0.0, "end_prob": 2.0},
    {"max_tokens": 30, "raw_prompt": "x"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_joined_tokens_are_the_answer(settings: dict[str, object]) -> None:
    for number in range(7000, 7025):
        world = random_world(number, logprobs=2, **settings)
        events = list(world.decoder().run())
        assert_the_law(events, f"world {number}")
        assert decoded(events) == referred(world.reference()), f"world {number}"


@pytest.mark.thorough
def test_joined_tokens_are_the_answer_in_thousands_of_worlds() -> None:
    n_rests = n_cut = 0
    for number in range(20_000, 23_000):
        world = random_world(number, logprobs=1)
        world.curve = GUESSING if number % 2 else None
        events = list(world.decoder().run())
        assert_the_law(events, f"world {number}")
        backends = {role: session._backend for role, session in zip(Role, world.sessions(), strict=True)}
        for piece in pieces_of(events):
            n_rests += sum(token.is_rest for token in piece.tokens)
            n_cut += sum(token.data != backends[piece.author].piece(token.id) for token in piece.tokens)
    assert n_rests > 500
    assert n_cut > 2 * n_rests  # stop strings and seams too


@pytest.mark.parametrize("curve", [None, GUESSING, straight_curve(0.1, 0.2, exact=3)])
def test_scores_are_read_behind_the_text_in_front_of_each_token(
    curve: CostCurve | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case B31 on every token, also right behind handoffs that cut the cache back."""
    asked: list[tuple[Role, tuple[int, ...], int, TokenScore]] = []
    score = Writer.score

    def watched(writer: Writer, token: int) -> TokenScore | None:
        got = score(writer, token)
        assert got is not None
        asked.append((writer.role, writer._session.ids, token, got))
        return got

    monkeypatch.setattr(Writer, "score", watched)
    n_tokens = n_again = 0
    for number in range(7100, 7160):
        world = random_world(number, logprobs=3, max_tokens=40, stop=[])
        world.curve = curve
        asked.clear()
        *events, finished = world.decoder().run()
        assert isinstance(finished, Finished)
        n_tokens += len(asked)
        n_again += sum(finished.usage.of(role).evaluated[Cause.REEVALUATED] for role in Role)
        backends = {Role.BASE: world.base(), Role.NUDGING: world.nudging()}
        for role, ids, token, got in asked:
            want = log_softmax(np.asarray(backends[role]._scorer(ids)))
            best = sorted(range(len(want)), key=lambda i: (-want[i], i))[:3]
            assert got.logprob == pytest.approx(want[token], abs=1e-4), f"world {number}"
            assert [prob for _, prob in got.top[:3]] == pytest.approx(want[best], abs=1e-4)
            assert got.top == tuple(sorted(got.top, key=lambda item: -item[1]))
            assert (got.data, got.logprob) in got.top
            if world.request.sampling.temp == 0.0 and token == best[0]:
                assert got.top[0] == (got.data, got.logprob)
        assert_shown_in_order(asked, tokens_of(events))
    assert n_tokens > 1000
    assert n_again > 50


def assert_shown_in_order(
    asked: Sequence[tuple[Role, tuple[int, ...], int, TokenScore]], shown: Sequence[TokenScore]
) -> None:
    """What is shown was asked for in the same order; what was dropped is left out."""
    order = iter(asked)
    for token in shown:
        if not token.is_rest:
            assert any(item[2] == token.id and item[3].logprob == token.logprob for item in order)


def test_a_turn_by_agreement_is_scored() -> None:
    """The base model's top token is taken over without being drawn; its row is still at hand."""
    vocabulary = ToyVocabulary(("The", " cat", " sat", " on", " mat"))
    words = ["The", " cat", " sat", " on", " mat"]

    def rule(prompt: bytes, prob: float) -> Scorer:
        def next_word(text: bytes) -> tuple[str, float]:
            n_words = next(n for n in range(6) if text == prompt + "".join(words[:n]).encode())
            return (words[n_words], prob) if n_words < len(words) else ("<eos>", prob)

        return scripted_scores(vocabulary, next_word)

    world = World(
        build_request("hi", gamma=0.5, logprobs=2),
        lambda **options: FakeBackend(vocabulary, rule(b"Q\n", 0.3), **options),
        lambda **options: FakeBackend(vocabulary, rule(b"", 0.8), **options),
        Prompt((0,), b"Q\n", ()),
        Prompt((0, 2), b"", ()),
    )
    pieces = pieces_of(list(world.decoder().run()))
    agreed = [piece for piece in pieces if piece.reason is HandoffReason.AGREED and piece.author is Role.BASE]
    assert [piece.text for piece in agreed] == [" cat", " on"]
    for piece in agreed:
        (token,) = piece.tokens
        assert token.top[0] == (piece.text.encode(), token.logprob)
        assert token.logprob == pytest.approx(math.log(piece.top_prob or 1.0), abs=1e-5)
    assert [token.logprob for token in pieces[0].tokens] == pytest.approx([math.log(0.8)], abs=0.01)


def test_the_best_at_the_place_of_a_greedy_token_is_itself() -> None:
    """Case B31: first and best of its own list, the list from high to low, each by the row in front of it."""
    vocabulary = ToyVocabulary((" the", " cat", " sat"))
    scorer = hashed_scores(vocabulary, 3, eog_rate=0.0)
    prompt = Prompt((0,), b"A B C", ())
    world = World(
        build_request("hi", rule="base-only", logprobs=3, max_tokens=12, loop_guard=False, raw_prompt="A B C"),
        lambda **options: FakeBackend(vocabulary, scorer, **options),
        lambda **options: FakeBackend(vocabulary, scorer, **options),
        prompt,
        prompt,
    )
    ids = [0, *vocabulary.tokenize(b"A B C")]
    tokens = tokens_of(list(world.decoder().run()))
    assert len(tokens) == 12
    for token in tokens:
        want = log_softmax(scorer(tuple(ids)))
        best = np.argsort(-want, kind="stable")[:3]
        assert token.id == best[0]
        assert [data for data, _ in token.top] == [vocabulary.pieces[i] for i in best]
        assert [token.logprob, *[logprob for _, logprob in token.top[1:]]] == pytest.approx(want[best], abs=1e-4)
        ids.append(token.id)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_scores_end_a_scored_answer_with_the_error(bad: float) -> None:
    """Case B32: nothing of the row is shown, and the pair goes on with the next request."""
    vocabulary = ToyVocabulary((" the",))
    scorer = hashed_scores(vocabulary, 5, eog_rate=0.0)
    is_broken = [True]

    def broken(ids: tuple[int, ...]) -> np.ndarray:
        row = scorer(ids)
        if is_broken and len(ids) == 6:
            row[9] = bad
        return row

    prompt = Prompt((0,), b"A", ())
    make = lambda **options: FakeBackend(vocabulary, broken, **options)  # noqa: E731
    world = World(build_request("hi", rule="base-only", logprobs=2, max_tokens=9), make, make, prompt, prompt)
    sessions = world.sessions()
    events: list[Event] = []
    with pytest.raises(NonFiniteScoresError, match="base model"):
        events.extend(world.decoder(sessions).run())  # takes what comes before the error
    assert len(tokens_of(events)) == 4
    is_broken.clear()
    assert decoded(list(world.decoder(sessions).run())) == decoded(list(world.decoder().run()))


def test_without_the_setting_no_token_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is scored where nobody asked for it")

    monkeypatch.setattr(TokenScorer, "score", never)
    for number in range(7300, 7310):
        events = list(random_world(number, logprobs=None).decoder().run())
        assert tokens_of(events) == []


def test_a_cancelled_answer_keeps_the_law() -> None:
    for number in range(7400, 7410):
        world = random_world(number, logprobs=1, max_tokens=40)
        for n_checks in range(0, 60, 7):
            left = iter(range(n_checks))
            events = list(world.decoder(None, lambda left=left: next(left, None) is None).run())
            assert_the_law(events, f"world {number}, check {n_checks}")
