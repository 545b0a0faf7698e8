"""Scores on the demo pair: those of the bare backend, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edge_nudge.core.events import Piece, Role, TokenScore
from edge_nudge.core.request import build_request
from edge_nudge.runtime import Pair, PairSpec, load_pair

pytestmark = [pytest.mark.native, pytest.mark.demo]

TEXT = "The capital of France is Paris. It lies on the river Seine, and about 2,100,000 people live there.\n\nNaïve 語."


@pytest.fixture(scope="module")
def pair(demo_paths: tuple[Path, Path]) -> Iterator[Pair]:
    with load_pair(PairSpec(*demo_paths, name="demo", gamma=0.4), ctx_size=1024) as pair:
        yield pair


def log_softmax(row: np.ndarray) -> np.ndarray:
    exact = row.astype(np.float64)
    return exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())


def step_by_step(pair: Pair, ids: Sequence[int]) -> list[np.ndarray]:
    """The logs behind each token, evaluated one at a time on the bare backend."""
    backend = pair.base
    pair.forget()
    logs = []
    for token in ids:
        backend.evaluate([token], [0])
        logs.append(log_softmax(backend.scores(0)))
    pair.forget()
    return logs


def test_a_prompt_in_steps_has_the_scores_of_the_bare_backend(pair: Pair) -> None:
    """Case B31: each score is from the row in front of it; steps are what any two ways of evaluating share."""
    ids = [pair.base.info.bos or 0, *pair.base.tokenize(TEXT.encode())]
    logs = step_by_step(pair, ids)
    scorer = pair._prompt_scorer
    n_block, scorer._n_block = scorer._n_block, 1
    try:
        tokens = pair.score(TEXT, 3)
    finally:
        scorer._n_block = n_block
        pair.forget()
    assert [token.id for token in tokens] == ids[1:]
    assert b"".join(token.data for token in tokens) == TEXT.encode()
    assert tokens[0].logprob is None
    for token, want in zip(tokens[1:], logs[1:], strict=False):
        assert token.logprob == pytest.approx(want[token.id], abs=1e-3)
        assert [logprob for _, logprob in token.top[:3]] == pytest.approx(np.sort(want)[::-1][:3], abs=1e-3)


def test_a_prompt_in_blocks_has_the_scores_of_the_bare_backend_in_blocks(pair: Pair) -> None:
    ids = [pair.base.info.bos or 0, *pair.base.tokenize((TEXT * 2).encode())]
    got = pair.score(ids, 1)
    n_block = pair._prompt_scorer._n_block
    pair.forget()
    want = []
    for start in range(0, len(ids) - 1, n_block):
        batch = ids[start : min(start + n_block, len(ids) - 1)]
        pair.base.evaluate(batch, range(len(batch)))
        want += [log_softmax(pair.base.scores(row)) for row in range(len(batch))]
    pair.forget()
    for i, token in enumerate(got[1:]):
        assert token.logprob == pytest.approx(want[i][token.id], abs=1e-3)


def test_scores_are_the_same_cold_and_warm(pair: Pair) -> None:
    context = TEXT + " The capital of Italy is"
    cold = {}
    for text in (context + " Rome", context + " Milan.", TEXT, context + " Rome."):
        pair.forget()
        cold[text] = pair.score(text, 1)
    pair.forget()
    for text in (*cold, *reversed(cold)):
        assert pair.score(text, 1) == cold[text]
    pair.stream("Where is Rome?", max_tokens=8).finish()
    for text in cold:
        assert pair.score(text, 1) == cold[text]


@pytest.mark.parametrize(
    ("context", "right", "wrong"),
    [
        ("The capital of France is", "Paris", "Berlin"),
        ("One, two, three, four, five, six,", "seven", "two"),
        ("Question: 2+2? Answer: ", "4", "blue"),
        ("Look at http:", "//x.org", " banana"),
    ],
)
def test_a_certain_answer_is_right(pair: Pair, context: str, right: str, wrong: str) -> None:
    """Case B71: context and answer are one text, and only the answer's tokens are summed."""

    def log_likelihood(answer: str) -> float:
        shown = context.rstrip()
        blanks = context[len(shown) :] or (" " if shown[-1].isalnum() or shown[-1] == "," else "")
        n_context = len(pair.score(shown))
        tokens = pair.score(shown + blanks + answer)
        assert all(token.logprob is not None for token in tokens[n_context:])
        return sum(token.logprob or 0.0 for token in tokens[n_context:])

    assert log_likelihood(right) > log_likelihood(wrong) + 1


def test_the_tokens_of_an_answer_have_the_scores_of_their_model(pair: Pair) -> None:
    events = list(pair.stream("Why is the sky blue?", max_tokens=25, logprobs=2))
    pieces = [event for event in events if isinstance(event, Piece)]
    assert {piece.author for piece in pieces} == set(Role)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert b"".join(token.data for token in tokens).decode() == "".join(piece.text for piece in pieces)
    for piece in pieces:
        assert piece.n_tokens == sum(not token.is_rest for token in piece.tokens)
        if piece.author is Role.BASE and piece.top_prob is not None and piece.reason.value != "agreed":
            assert piece.tokens[0].top[0][1] == pytest.approx(math.log(piece.top_prob), abs=1e-5)
    assert all(is_best(token) for token in tokens)


def is_best(token: TokenScore) -> bool:
    """Tell whether a greedy token is first and best of its own list, or the rest of one."""
    return token.is_rest or token.logprob == token.top[0][1]


def test_a_plain_completion_goes_on_with_the_prompt(pair: Pair) -> None:
    """The base model alone behind a text and behind its ids: the same answer, with the blank in front of it."""
    text = "One, two, three, four,"
    ids = [pair.base.info.bos, *pair.base.tokenize(text.encode())]
    answers = []
    for raw in (text, ids):
        request = build_request("hi", raw_prompt=raw, rule="base-only", max_tokens=6, logprobs=0)
        answer = pair.answer(request)
        answers.append("".join(event.text for event in answer if isinstance(event, Piece)))
    assert answers[0] == answers[1]
    assert answers[0].startswith(" five, six")
