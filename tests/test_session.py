"""Session against a strict fake that may refuse: whatever happens, the cache is the ids and scores are fresh."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_nudge.core.events import Cause, ModelUsage
from edge_nudge.core.prefix import common_prefix
from edge_nudge.core.session import Cancelled, Session, SyncCost
from edge_nudge.core.shelf import LEAST_TOKENS, Shelf
from edge_nudge.errors import EngineError
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

VOCABULARY = ToyVocabulary((" the", "ab"))
SCORER = hashed_scores(VOCABULARY, 1)
NO_GUESS: list[int] = []
GUESS = st.lists(st.integers(4, 9), max_size=5)
IDS = st.lists(st.integers(4, 9), min_size=1, max_size=24)


def make(shelf: Shelf | None = None, **options: object) -> Session:
    return Session(FakeBackend(VOCABULARY, SCORER, **options), shelf=shelf)  # type: ignore[arg-type]


def backend_of(session: Session) -> FakeBackend:
    assert isinstance(session._backend, FakeBackend)
    return session._backend


class SessionMachine(RuleBasedStateMachine):
    """Random syncs, advances, cancels, failures and interrupts on a backend of any temper."""

    @initialize(
        can_rewind=st.booleans(),
        refuses=st.sets(st.integers(0, 24)),
        n_batch=st.sampled_from([1, 3, 512]),
        fails_at=st.sets(st.integers(0, 40), max_size=3),
        shelf_bytes=st.sampled_from([0, 300, 1 << 20]),
    )
    def start(self, can_rewind: bool, refuses: set[int], n_batch: int, fails_at: set[int], shelf_bytes: int) -> None:
        self.shelf = Shelf(shelf_bytes)
        self.shelf_bytes = shelf_bytes
        self.session = make(
            self.shelf,
            can_rewind=can_rewind,
            n_batch=n_batch,
            refuse=lambda n_keep: n_keep in refuses,
            fail=lambda call: call % 2 if call in fails_at else None,
        )
        self.can_rewind = can_rewind
        self.expected: list[int] = []
        self.is_cancelled = False
        self.usage = ModelUsage()
        self.session.begin(3, self.usage, lambda: self.is_cancelled)

    @rule(ids=IDS, guess=GUESS)
    def sync(self, ids: list[int], guess: list[int] = NO_GUESS) -> None:
        before = list(self.session.ids) if self.is_in_step() else []
        cached = list(backend_of(self.session).cached_ids) if self.is_in_step() else []
        try:
            cost = self.session.sync(ids, lambda n_tokens: self.guessed(n_tokens, guess))
        except EngineError:
            assert ids[: len(self.session)] == list(self.session.ids)
            self.expected = list(self.session.ids)
            return
        assert self.session.ids == tuple(ids)
        assert cost.reused + cost.evaluated == len(ids)
        assert cost.reused <= common_prefix(cached, ids)
        assert cost.dropped == len(before) - min(cost.reused, len(before))
        self.check_scores(ids)
        self.expected = ids

    @rule(n_shared=st.integers(0, 24), tail=IDS, guess=GUESS)
    def sync_to_a_related_text(self, n_shared: int, tail: list[int], guess: list[int]) -> None:
        self.sync([*self.expected[:n_shared], *tail], guess)

    @rule(n_tokens=st.integers(1, 5), guess=GUESS)
    def sync_to_what_was_guessed(self, n_tokens: int, guess: list[int]) -> None:
        n_text = len(self.expected)
        ids = list(backend_of(self.session).cached_ids[: n_text + n_tokens])
        if not n_text or len(ids) <= n_text:
            return
        n_calls = backend_of(self.session).n_calls
        has_scores = len(ids) - 1 in self.session._rows
        self.sync(ids, guess)
        assert (backend_of(self.session).n_calls == n_calls) == has_scores

    @rule(token=st.integers(4, 9), guess=GUESS, as_guessed=st.booleans())
    def advance(self, token: int, guess: list[int], as_guessed: bool) -> None:
        if not self.expected:
            return
        guessed = backend_of(self.session).cached_ids[len(self.expected) :]
        if as_guessed and guessed:
            token = guessed[0]
        try:
            self.session.advance(token, lambda n_tokens: self.guessed(n_tokens, guess))
        except EngineError:
            self.expected = list(self.session.ids)
            return
        self.expected = [*self.expected, token]
        self.check_scores(self.expected)

    @rule(number=st.integers(0, 3), n_more=st.integers(0, 5), guess=GUESS)
    def another_request(self, number: int, n_more: int, guess: list[int]) -> None:
        """One of four conversations, long enough to be worth its place on the shelf, goes on."""
        self.usage = ModelUsage()
        self.session.begin(3, self.usage, lambda: self.is_cancelled)
        ids = [*[4 + number] * (LEAST_TOKENS + 4 * number), *[9] * n_more]
        try:
            cost = self.session.sync(ids, lambda n_tokens: self.guessed(n_tokens, guess))
        except EngineError:
            assert ids[: len(self.session)] == list(self.session.ids)
            self.expected = list(self.session.ids)
            return
        assert cost.reused + cost.evaluated == len(ids)
        self.check_scores(ids)
        self.expected = ids

    @rule(token=st.integers(4, 9))
    def try_ahead(self, token: int) -> None:
        if not self.expected or not self.can_rewind:
            return
        before = backend_of(self.session).cached_ids
        try:
            self.session.try_ahead(token)
        except EngineError:
            self.expected = list(self.session.ids)
            return
        assert backend_of(self.session).cached_ids == (*before, token)
        np.testing.assert_array_equal(self.session.scores_ahead, SCORER((*before, token)))

    @rule(ids=IDS)
    def cancelled_sync(self, ids: list[int]) -> None:
        self.is_cancelled = True
        try:
            self.session.sync(ids)
        except Cancelled:
            assert ids[: len(self.session)] == list(self.session.ids)
        except EngineError:
            pass
        self.is_cancelled = False
        self.expected = list(self.session.ids)

    @rule()
    def interrupt_between_engine_and_session(self) -> None:
        """A signal arrives after the native call and before the session has noted it."""
        backend = backend_of(self.session)
        self.session._rows.clear()  # as before every native call
        with suppress(EngineError):
            backend.evaluate([5])
        self.sync([4, 5, 6])

    @invariant()
    def the_cache_is_the_ids(self) -> None:
        if hasattr(self, "session"):
            cached = backend_of(self.session).cached_ids
            assert list(self.session.ids) == self.expected == list(cached[: len(self.expected)])
            assert self.can_rewind or len(cached) == len(self.expected)
            assert min(self.usage.evaluated.values()) >= 0
            assert self.shelf.n_bytes <= self.shelf_bytes

    def guessed(self, n_tokens: int, guess: list[int]) -> list[int]:
        assert self.can_rewind, "a model that cannot take a guess back is not asked"
        assert n_tokens > 0
        return guess

    def is_in_step(self) -> bool:
        return len(self.session._ids) == backend_of(self.session).n_cached

    def check_scores(self, ids: list[int]) -> None:
        np.testing.assert_array_equal(self.session.scores, SCORER(tuple(ids)))


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_full_hit_evaluates_the_last_token_again_only_if_its_scores_are_gone() -> None:
    session = make()
    assert session.sync([4, 5, 6]) == SyncCost(0, 0, 3)
    assert session.sync([4, 5, 6]) == SyncCost(3, 0, 0)
    session.advance(7)
    assert session.sync([4, 5, 6]) == SyncCost(2, 2, 1)


def test_causes_add_up() -> None:
    session = make()
    usage = ModelUsage()
    session.begin(3, usage)
    session.sync([4, 5, 6, 7, 8])  # prompt of 3, two words of the other model
    session.advance(9)
    session.sync([4, 5, 6, 7, 5, 5, 5])  # from position 4 on: two were there before, one is new
    assert usage.evaluated == {
        Cause.PROMPT: 3,
        Cause.CATCH_UP: 3,
        Cause.OWN: 1,
        Cause.REEVALUATED: 2,
        Cause.VERIFIED: 0,
        Cause.WASTED: 0,
    }
    assert usage.n_evaluated == backend_of(session).n_evaluated
    assert usage.n_calls == backend_of(session).n_calls == 4


def test_a_model_that_cannot_rewind_goes_back_to_a_checkpoint() -> None:
    session = make(can_rewind=False)
    session.sync(list(range(4, 14)))
    cost = session.sync([*range(4, 11), 4, 4, 4])
    assert cost.reused == 6  # the state before the last four tokens
    assert cost.evaluated == 4


def test_only_the_last_row_is_asked_for() -> None:
    session = make(n_batch=4)
    session.sync([5] * 10)
    assert backend_of(session).n_calls == 4  # 4, 4, 1 and the last one alone
    assert backend_of(session).n_rows == 1


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 3, 4], 1)]
)
def test_common_prefix(a: list[int], b: list[int], n: int) -> None:
    assert common_prefix(a, b) == n == common_prefix(b, a)


def test_the_last_token_of_a_prompt_goes_alone_as_it_does_when_the_request_comes_again() -> None:
    """Case B34: a batch is not bit-equal to single steps, and an answer must not depend on the cache."""
    sizes: list[list[int]] = []
    session = make()
    evaluate = backend_of(session).evaluate
    backend_of(session).evaluate = lambda tokens, rows=(): (sizes[-1].append(len(tokens)), evaluate(tokens, rows))[1]  # type: ignore[method-assign,misc]
    for _ in range(2):
        sizes.append([])
        session.begin(12, ModelUsage())
        session.sync([5, 6, 7] * 4)
        session.advance(4)
        session.sync([*[5, 6, 7] * 4, 4, 8, 9, 8, 9, 8])
    assert sizes == [[11, 1, 1, 5], [1, 1, 5]]


def test_guesses_that_come_true_cost_no_call() -> None:
    session = make()
    usage = ModelUsage()
    session.begin(2, usage)
    session.sync([4, 5, 6], lambda n_tokens: [7, 8, 9])
    session.advance(7)
    session.sync([4, 5, 6, 7, 8])
    assert (usage.n_calls, usage.evaluated[Cause.VERIFIED], usage.evaluated[Cause.WASTED]) == (2, 2, 1)
    np.testing.assert_array_equal(session.scores, SCORER((4, 5, 6, 7, 8)))
    session.advance(4)  # guessed wrong
    assert (usage.n_calls, usage.evaluated[Cause.OWN], usage.evaluated[Cause.WASTED]) == (3, 1, 1)
    np.testing.assert_array_equal(session.scores, SCORER((4, 5, 6, 7, 8, 4)))
    assert usage.n_evaluated == backend_of(session).n_evaluated


def test_guesses_stay_within_batch_and_context() -> None:
    session = make(n_batch=4, n_ctx=8)
    session.sync([4, 5], lambda n_tokens: [6] * 9)
    assert backend_of(session).cached_ids == (4, 5, 6, 6, 6)  # the last token of a prompt goes alone
    session.sync([4, 5, 6, 7, 8], lambda n_tokens: [6] * 9)
    assert backend_of(session).cached_ids == (4, 5, 6, 7, 8, 6, 6)
    session.sync([4, 5, 6, 7, 8, 9, 9, 9], lambda n_tokens: [6] * 9)
    assert len(session) == 8


def test_guesses_of_the_request_before_are_reused_like_its_text() -> None:
    session = make()
    session.sync([4, 5], lambda n_tokens: [6, 7])
    usage = ModelUsage()
    session.begin(4, usage)
    session.sync([4, 5, 6, 7])
    assert (usage.n_reused, usage.n_calls, usage.evaluated[Cause.PROMPT]) == (3, 1, 1)
    assert min(usage.evaluated.values()) == 0


def test_a_long_text_is_read_in_batches_between_which_it_can_be_cancelled() -> None:
    backend = FakeBackend(VOCABULARY, SCORER)
    session = Session(backend, n_batch=4)
    session.begin(20, ModelUsage(), lambda: backend.n_calls == 2)
    with pytest.raises(Cancelled):
        session.sync([5] * 20)
    assert session.ids == (5,) * 8


# --- several conversations


def ask(session: Session, ids: list[int]) -> int:
    """Begin a request with this prompt and return how many of its tokens were evaluated."""
    usage = ModelUsage()
    session.begin(len(ids), usage)
    session.sync(ids)
    np.testing.assert_array_equal(session.scores, SCORER(tuple(ids)))
    return usage.n_evaluated


def conversation(number: int, n_ids: int) -> list[int]:
    return [4 + number] * n_ids


@pytest.mark.parametrize("can_rewind", [True, False])
def test_conversations_side_by_side_read_what_is_new(can_rewind: bool) -> None:
    session = make(Shelf(1 << 20), can_rewind=can_rewind)
    sizes = [60, 50, 70]
    assert [ask(session, conversation(number, sizes[number])) for number in range(3)] == sizes
    for number in (0, 2, 1, 0, 1):
        sizes[number] += 5
        assert ask(session, conversation(number, sizes[number])) == 5
    without = make(can_rewind=can_rewind)
    assert [ask(without, conversation(number, 50)) for number in (0, 1, 0)] == [50, 50, 50]


def test_the_least_recently_used_conversation_goes_when_the_budget_is_full() -> None:
    session = make(shelf := Shelf(2 * 4 * 50))
    for number in (0, 1, 2):
        ask(session, conversation(number, 50))
    assert len(shelf) == 2
    assert ask(session, [*conversation(0, 50), 9]) == 1  # kept; the third one took the place of nobody
    assert ask(session, [*conversation(3, 50), 9]) == 51
    assert ask(session, [*conversation(1, 50), 9]) == 51  # the oldest one was given up for another
    assert shelf.n_bytes <= 2 * 4 * 51


def test_a_beginning_shared_by_two_conversations_is_kept_for_both() -> None:
    session = make(Shelf(1 << 20))
    system = [5] * 40
    ask(session, [*system, *[6] * 40])
    ask(session, [7] * 40)
    assert ask(session, [*system, *[8] * 40]) == 40
    assert ask(session, [*system, *[6] * 40, 9]) == 1


def test_a_request_that_reuses_nothing_reads_all_and_leaves_the_others_alone() -> None:
    session = make(Shelf(1 << 20))
    ask(session, conversation(0, 50))
    usage = ModelUsage()
    session.begin(50, usage, reuses_cache=False)
    session.sync(conversation(0, 50))
    assert (usage.n_evaluated, usage.n_reused) == (50, 0)
    session.sync([*conversation(0, 50), 9])  # later in the same request the cache is its own
    assert usage.n_evaluated == 51
    assert ask(session, conversation(0, 60)) == 10


def test_a_budget_of_nothing_keeps_nothing() -> None:
    session = make(shelf := Shelf(0))
    assert [ask(session, conversation(number, 50)) for number in (0, 1, 0)] == [50, 50, 50]
    assert (len(shelf), shelf.n_bytes) == (0, 0)
