"""Tokenizing in parts on a toy vocabulary: whatever is appended or cut, the ids are those of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_nudge.core import continuation as continuation_module
from edge_nudge.core.continuation import Continuation, last_settled_place
from edge_nudge.core.prompt import Prompt
from edge_nudge.testing import FakeBackend, ToyVocabulary, hashed_scores

WORDS = (" the", " cat", "ing", " a", "ab", "abc", " un", "é", "\n\n", "  ", " s", "sat")
APPEND = st.tuples(st.just(0), st.text("abs ct\né.", max_size=12))
CUT = st.tuples(st.integers(1, 30), st.just(""))


def fake(words: tuple[str, ...], *, space_prefix: bool = False) -> FakeBackend:
    vocabulary = ToyVocabulary(words, space_prefix=space_prefix)
    return FakeBackend(vocabulary, hashed_scores(vocabulary))


@pytest.fixture(autouse=True)
def every_text_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation_module, "LONG_BYTES", 0)


@pytest.mark.parametrize("space_prefix", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(APPEND | CUT, min_size=1, max_size=25))
def test_the_ids_are_those_of_the_whole_text(edits: list[tuple[int, str]], space_prefix: bool) -> None:
    backend = fake(WORDS, space_prefix=space_prefix)
    view = Continuation(Prompt((0,), b"the cat sat a cat"), backend)
    answer = ""
    for n_cut, more in edits:
        answer = answer[: max(0, len(answer) - n_cut)] + more
        ids, overlap = view.ids(answer.encode())
        text = b"the cat sat a cat" + answer.encode()
        assert ids == [0, *backend.tokenize(text.rstrip(b" "))]
        assert overlap == len(text) - len(text.rstrip(b" "))


def test_only_what_is_new_is_tokenized() -> None:
    backend = fake(WORDS)
    seen: list[bytes] = []
    tokenize = backend.tokenize

    def watched(text: bytes, *, special: bool = False) -> list[int]:
        seen.append(text)
        return tokenize(text, special=special)

    backend.tokenize = watched  # type: ignore[method-assign]
    view = Continuation(Prompt((0,), b"the cat sat " * 200), backend)
    view.ids(b"a cat")
    seen.clear()
    for n in range(1, 50):
        view.ids(b"a cat" + b" sat the cat" * n)
    assert max(map(len, seen)) < 20


def test_a_vocabulary_whose_tokens_cross_words_is_tokenized_whole() -> None:
    backend = fake((*WORDS, "t s"))
    assert not backend.words_are_separate
    view = Continuation(Prompt((0,), b""), backend)
    assert view.ids(b"cat sat")[0] == [0, *backend.tokenize(b"cat sat")]
    assert backend.vocabulary.word("t s") in view.ids(b"cat sat")[0]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"", None),
        (b"a", None),
        (b"a b", 1),
        (b"a b c", 3),
        (b"a  b", None),
        (b"a. b", None),
        (b"a 1", None),
        (b"a b ", 1),
    ],
)  # fmt: skip
def test_settled_places(text: bytes, place: int | None) -> None:
    assert last_settled_place(text, 0) == place
